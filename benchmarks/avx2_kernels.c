/* Binary and low-bit kernels for AVX2 by hand, to measure compiled ones against: see avx2_kernels.py.

Every kernel is the same loop over a window: `runs` pieces of `length` bytes, `run_stride` apart, in which each of
`rows` pixels has an address of its own.  A convolution has a run for every row of its kernel, since neighbouring pixels
of an NHWC image are neighbours in memory; a dense layer has one.  Weights are [vectors][runs * length][32] bytes of 32
output channels, bit b of byte k the weight of channel 8 k + b, as tvmq packs them for this processor.

A register tile is M pixels by N vectors.  Sums are bytes until they could overflow, then 16 bits: a vector of bytes
is added as 16-bit lanes to `both`, and its odd bytes to `odd`; the even ones are both - 256 * odd, modulo 2^16.

    popcount   xor, two nibbles, two lookups, two additions: 8 operations for 32 bytes of bits
    table      the nibbles of the weights index a table of the sums that four activations have with any four bits: two
               lookups and two additions, and 3 operations for the nibbles of a vector of weights, shared by M pixels.
               Of one and two bits there are so few tables that they all stay in the first-level cache: a pixel has a
               16-bit offset for every table (`offsets`).  Otherwise every pixel has its tables (`tables`). */

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define INLINE static inline __attribute__((always_inline))
/* Keeps gcc from adding in another order, which takes more registers than there are. */
#define KEEP(vector) __asm__("" : "+x"(vector))
#define MOST_PIXELS 8
#define MOST_VECTORS 4

typedef struct {
    const uint8_t *image;  /* of the first pixel: bits, 16-bit offsets of tables, or tables of 16 bytes */
    const uint8_t *master; /* all tables, where the image holds offsets */
    const uint8_t *weight;
    const int32_t *bias;   /* [32 * vectors] */
    const int32_t *window; /* [pixels] sums of activations, or NULL for exclusive or */
    int32_t *out;          /* [pixels][32 * vectors] */
    int32_t width;         /* output pixels of a row */
    int32_t pixels;
    int32_t vectors;
    int32_t runs;
    int32_t length;  /* bytes of bits in a run */
    int32_t chunk;   /* bytes of bits between two flushes; divides `length` */
    int32_t pixel_bytes;
    int32_t row_bytes;
} layer;

double cycles_per_second(void) {
    unsigned long x = 1;
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int i = 0; i < 20000; i++) __asm__ volatile("imul %0,%0\nimul %0,%0\nimul %0,%0\nimul %0,%0" : "+r"(x));
    clock_gettime(CLOCK_MONOTONIC, &end);
    return 20000 * 12 / (end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) * 1e-9);
}

INLINE void popcount_step(int M, int N, __m256i sum[MOST_PIXELS][MOST_VECTORS], const uint8_t *const pixel[],
                          ptrdiff_t k, const uint8_t *const weight[], __m256i counts, __m256i nibble) {
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
        __m256i x = _mm256_set1_epi8((char)pixel[m][k]);
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            __m256i bits = _mm256_xor_si256(x, _mm256_load_si256((const __m256i *)(weight[n] + 32 * k)));
            __m256i low = _mm256_shuffle_epi8(counts, _mm256_and_si256(bits, nibble));
            __m256i high = _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble));
            sum[m][n] = _mm256_add_epi8(sum[m][n], low);
            KEEP(sum[m][n]);
            sum[m][n] = _mm256_add_epi8(sum[m][n], high);
        }
    }
}

INLINE void table_step(int M, int N, int offsets, __m256i sum[MOST_PIXELS][MOST_VECTORS], const uint8_t *const pixel[],
                       ptrdiff_t k, const uint8_t *const weight[], const uint8_t *master, __m256i nibble) {
    __m256i index[MOST_VECTORS];
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            __m256i bits = _mm256_load_si256((const __m256i *)(weight[n] + 32 * k));
            index[n] = _mm256_and_si256(half ? _mm256_srli_epi16(bits, 4) : bits, nibble);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            const uint8_t *start = pixel[m] + 32 * k + 16 * half;
            if (offsets) start = master + ((const uint16_t *)pixel[m])[2 * k + half];
            __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)start));
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) {
                sum[m][n] = _mm256_add_epi8(sum[m][n], _mm256_shuffle_epi8(table, index[n]));
                KEEP(sum[m][n]);
            }
        }
    }
}

INLINE __m256i widened(__m256i low, __m256i high, int part) {
    __m256i half = part & 1 ? high : low;
    return _mm256_cvtepu16_epi32(part & 2 ? _mm256_extracti128_si256(half, 1) : _mm256_castsi256_si128(half));
}

/* 32 sums of 16 bits as int32: out = bias - sum, or bias + 2 sum - window. */
INLINE void store(const layer *l, int pixel, int vector, __m256i both, __m256i odd) {
    __m256i even = _mm256_sub_epi16(both, _mm256_slli_epi16(odd, 8));
    __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
    int32_t *out = l->out + ((ptrdiff_t)pixel * l->vectors + vector) * 32;
    const int32_t *bias = l->bias + vector * 32;
    __m256i window = _mm256_set1_epi32(l->window ? l->window[pixel] : 0);
#pragma GCC unroll 4
    for (int part = 0; part < 4; part++) {
        __m256i sum = widened(low, high, part), start = _mm256_loadu_si256((const __m256i *)(bias + 8 * part));
        __m256i result = l->window ? _mm256_sub_epi32(_mm256_add_epi32(start, _mm256_add_epi32(sum, sum)), window)
                                   : _mm256_sub_epi32(start, sum);
        _mm256_storeu_si256((__m256i *)(out + 8 * part), result);
    }
}

enum { POPCOUNT, OFFSETS, TABLES };

INLINE void tiled(int M, int N, int kind, const layer *l) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i counts = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const ptrdiff_t vector_bytes = (ptrdiff_t)l->runs * l->length * 32;
    const ptrdiff_t scale = kind == POPCOUNT ? 1 : kind == OFFSETS ? 4 : 32;
    for (int vector = 0; vector < l->vectors; vector += N) {
        for (int first = 0; first < l->pixels; first += M) {
            __m256i both[MOST_PIXELS][MOST_VECTORS], odd[MOST_PIXELS][MOST_VECTORS];
#pragma GCC unroll 8
            for (int m = 0; m < M; m++)
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) both[m][n] = odd[m][n] = _mm256_setzero_si256();
            const uint8_t *start[MOST_PIXELS], *block = l->weight + vector * vector_bytes;
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) { /* pixels beyond the last repeat it, and are not stored */
                int at = first + m < l->pixels ? first + m : l->pixels - 1;
                start[m] = l->image + (ptrdiff_t)(at / l->width) * l->row_bytes + (ptrdiff_t)(at % l->width) * l->pixel_bytes;
            }
            for (int run = 0; run < l->runs; run++) {
                for (int piece = 0; piece < l->length; piece += l->chunk) {
                    __m256i sum[MOST_PIXELS][MOST_VECTORS];
                    const uint8_t *pixel[MOST_PIXELS], *weight[MOST_VECTORS];
#pragma GCC unroll 8
                    for (int m = 0; m < M; m++) {
                        pixel[m] = start[m] + (ptrdiff_t)run * l->row_bytes + piece * scale;
#pragma GCC unroll 4
                        for (int n = 0; n < N; n++) sum[m][n] = _mm256_setzero_si256();
                    }
#pragma GCC unroll 4
                    for (int n = 0; n < N; n++) weight[n] = block + n * vector_bytes;
                    for (ptrdiff_t k = 0; k < l->chunk; k++) {
                        if (kind == POPCOUNT)
                            popcount_step(M, N, sum, pixel, k, weight, counts, nibble);
                        else
                            table_step(M, N, kind == OFFSETS, sum, pixel, k, weight, l->master, nibble);
                    }
                    block += 32 * l->chunk;
#pragma GCC unroll 8
                    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
                        for (int n = 0; n < N; n++) {
                            both[m][n] = _mm256_add_epi16(both[m][n], sum[m][n]);
                            odd[m][n] = _mm256_add_epi16(odd[m][n], _mm256_srli_epi16(sum[m][n], 8));
                        }
                }
            }
#pragma GCC unroll 8
            for (int m = 0; m < M; m++)
#pragma GCC unroll 4
                for (int n = 0; n < N; n++)
                    if (first + m < l->pixels) store(l, first + m, vector + n, both[m][n], odd[m][n]);
        }
    }
}

#define KERNELS(M, N)                                                     \
    void popcount_##M##x##N(const layer *l) { tiled(M, N, POPCOUNT, l); } \
    void offsets_##M##x##N(const layer *l) { tiled(M, N, OFFSETS, l); }   \
    void tables_##M##x##N(const layer *l) { tiled(M, N, TABLES, l); }

KERNELS(1, 1)
KERNELS(1, 2)
KERNELS(1, 4)
KERNELS(2, 1)
KERNELS(2, 2)
KERNELS(2, 4)
KERNELS(3, 2)
KERNELS(4, 1)
KERNELS(4, 2)
KERNELS(6, 1)
KERNELS(7, 1)
KERNELS(8, 1)

/* An image [height][width][bytes] with a border of zeros. */
void pad(const uint8_t *image, uint8_t *padded, int height, int width, int bytes, int border) {
    int row = (width + 2 * border) * bytes;
    memset(padded, 0, (size_t)border * row);
    for (int y = 0; y < height; y++) {
        uint8_t *out = padded + (ptrdiff_t)(y + border) * row;
        memset(out, 0, (size_t)border * bytes);
        memcpy(out + border * bytes, image + (ptrdiff_t)y * width * bytes, (size_t)width * bytes);
        memset(out + (border + width) * bytes, 0, (size_t)border * bytes);
    }
    memset(padded + (ptrdiff_t)(height + border) * row, 0, (size_t)border * row);
}

/* The offsets of the tables of pixels [count][planes][bytes] of one or two bit planes: 16 times their nibble, or their
   two nibbles, the second plane's above the first's. */
void offsets_of_planes(const uint8_t *restrict image, uint16_t *restrict offsets, int count, int planes, int bytes) {
    for (int pixel = 0; pixel < count; pixel++) {
        const uint8_t *low = image + (ptrdiff_t)pixel * planes * bytes, *high = low + bytes;
        uint32_t *out = (uint32_t *)offsets + (ptrdiff_t)pixel * bytes;
        if (planes == 1)
            for (int k = 0; k < bytes; k++) out[k] = (low[k] & 15u) << 4 | (low[k] & 240u) << 16;
        else
            for (int k = 0; k < bytes; k++)
                out[k] = (low[k] & 15u) << 4 | (low[k] & 240u) << 16 | (high[k] & 15u) << 8 | (high[k] & 240u) << 20;
    }
}

/* The tables [16] of every four of `count` activations of a byte each: entry i sums those whose bit of i is set. */
void tables_of_bytes(const uint8_t *activations, uint8_t *tables, int count) {
    const char z = -1;
    const __m256i first = _mm256_setr_epi8(z, 0, z, 0, z, 0, z, 0, z, 0, z, 0, z, 0, z, 0, z, 4, z, 4, z, 4, z, 4, z, 4,
                                           z, 4, z, 4, z, 4);
    const __m256i second = _mm256_setr_epi8(z, z, 1, 1, z, z, 1, 1, z, z, 1, 1, z, z, 1, 1, z, z, 5, 5, z, z, 5, 5, z,
                                            z, 5, 5, z, z, 5, 5);
    const __m256i third = _mm256_setr_epi8(z, z, z, z, 2, 2, 2, 2, z, z, z, z, 2, 2, 2, 2, z, z, z, z, 6, 6, 6, 6, z, z,
                                           z, z, 6, 6, 6, 6);
    const __m256i fourth = _mm256_setr_epi8(z, z, z, z, z, z, z, z, 3, 3, 3, 3, 3, 3, 3, 3, z, z, z, z, z, z, z, z, 7,
                                            7, 7, 7, 7, 7, 7, 7);
    for (int k = 0; k < count; k += 8) {
        int64_t eight;
        memcpy(&eight, activations + k, 8);
        __m256i x = _mm256_set1_epi64x(eight);
        __m256i low = _mm256_add_epi8(_mm256_shuffle_epi8(x, first), _mm256_shuffle_epi8(x, second));
        __m256i high = _mm256_add_epi8(_mm256_shuffle_epi8(x, third), _mm256_shuffle_epi8(x, fourth));
        _mm256_store_si256((__m256i *)(tables + 4 * (ptrdiff_t)k), _mm256_add_epi8(low, high));
    }
}

/* The sums of windows of `kernel` x `kernel` pixels of a padded image, from bit planes or from bytes. */
void window_sums(const uint8_t *image, int32_t *pixels, int32_t *windows, int rows, int columns, int planes, int bytes,
                 int kernel) {
    for (int pixel = 0; pixel < rows * columns; pixel++) {
        const uint8_t *x = image + (ptrdiff_t)pixel * (planes ? planes : 1) * bytes;
        int32_t sum = 0;
        if (!planes) {
            __m256i lanes = _mm256_setzero_si256();
            for (int k = 0; k < bytes; k += 32)
                lanes = _mm256_add_epi64(
                    lanes, _mm256_sad_epu8(_mm256_loadu_si256((const __m256i *)(x + k)), _mm256_setzero_si256()));
            sum = (int32_t)(_mm256_extract_epi64(lanes, 0) + _mm256_extract_epi64(lanes, 1) +
                            _mm256_extract_epi64(lanes, 2) + _mm256_extract_epi64(lanes, 3));
        }
        for (int plane = 0; plane < planes; plane++)
            for (int k = 0; k < bytes; k += 8) {
                uint64_t eight;
                memcpy(&eight, x + plane * bytes + k, 8);
                sum += __builtin_popcountll(eight) << plane;
            }
        pixels[pixel] = sum;
    }
    int width = columns - kernel + 1;
    for (int y = 0; y <= rows - kernel; y++)
        for (int x = 0; x < width; x++) {
            int32_t sum = 0;
            for (int i = 0; i < kernel; i++)
                for (int j = 0; j < kernel; j++) sum += pixels[(y + i) * columns + x + j];
            windows[y * width + x] = sum;
        }
}

typedef struct {
    layer tile;             /* its image, window and out are the buffers below */
    const uint8_t *input;   /* [rows][columns][planes][bytes] of bits, or [rows][columns][bytes] where planes is 0 */
    uint8_t *padded;        /* the same with zeros around it */
    uint8_t *ready;         /* `padded`, or its offsets or tables */
    int32_t *pixel_sums;
    int32_t *window_sums;   /* or NULL */
    int32_t rows, columns, border, planes, bytes, kernel, kind;
    int32_t band; /* output rows whose tables are made at once, so that they are still in the cache when they are read */
} convolution;

/* Rows of the padded image as the kernel reads them. */
static void prepare(const convolution *c, int first, int end) {
    int columns = c->columns + 2 * c->border, count = (end - first) * columns;
    const uint8_t *rows = c->padded + (ptrdiff_t)first * columns * (c->planes ? c->planes : 1) * c->bytes;
    uint8_t *ready = c->ready + (ptrdiff_t)first * c->tile.row_bytes;
    if (c->kind == OFFSETS) offsets_of_planes(rows, (uint16_t *)ready, count, c->planes, c->bytes);
    if (c->kind == TABLES) tables_of_bytes(rows, ready, count * c->bytes);
}

static void run(void (*kernel)(const layer *), const convolution *c, int with_preparation) {
    int rows = c->rows + 2 * c->border, columns = c->columns + 2 * c->border, done = 0;
    if (with_preparation) pad(c->input, c->padded, c->rows, c->columns, (c->planes ? c->planes : 1) * c->bytes, c->border);
    if (with_preparation && c->window_sums)
        window_sums(c->padded, c->pixel_sums, c->window_sums, rows, columns, c->planes, c->bytes, c->kernel);
    for (int y = 0; y < c->rows; y += c->band) {
        int band = y + c->band < c->rows ? c->band : c->rows - y;
        if (with_preparation) prepare(c, done, y + band + 2 * c->border);
        done = y + band + 2 * c->border;
        layer part = c->tile;
        part.image += (ptrdiff_t)y * part.row_bytes;
        part.out += (ptrdiff_t)y * c->columns * part.vectors * 32;
        if (part.window) part.window += (ptrdiff_t)y * c->columns;
        part.pixels = band * c->columns;
        kernel(&part);
    }
}

/* Seconds of one of several calls, with or without padding the image and preparing its tables. */
double seconds(void (*kernel)(const layer *), const convolution *c, int with_preparation, int calls) {
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int call = 0; call < calls; call++) run(kernel, c, with_preparation);
    clock_gettime(CLOCK_MONOTONIC, &end);
    return (end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) * 1e-9) / calls;
}
