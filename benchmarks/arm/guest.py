"""Run a network in another engine some times; this runs in an emulated Python, which has numpy and that engine.

    python guest.py NETWORK.json INPUT.npy OUTPUT.npy RUNS

NETWORK.json names the engine, its files and its options.
"""

import json
import os
import sys

import numpy as np


def main():
    with open(sys.argv[1]) as file:
        network = json.load(file)
    array = np.load(sys.argv[2])
    run = ENGINES[network["engine"]](network, array)
    output = run()
    for _ in range(int(sys.argv[4]) - 1):
        output = run()
    np.save(sys.argv[3], np.asarray(output))


def onnxruntime(network, array):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(network["model"], options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, array)
    binding.bind_output(session.get_outputs()[0].name)

    def run():
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()

    return run


def ncnn(network, array):
    import ncnn

    net = ncnn.Net()
    for name, value in network["options"].items():
        setattr(net.opt, name, value)
    assert net.load_param(network["layers"]) == 0
    assert net.load_model(network["weights"]) == 0
    given = ncnn.Mat(np.ascontiguousarray(array[0])).clone()

    def run():
        extractor = net.create_extractor()
        extractor.input(network["input"], given)
        status, output = extractor.extract(network["output"])
        assert status == 0
        return output

    return run


def mnn(network, array):
    if not os.path.exists(network["model"]):
        import _tools  # MNN's script around it installs packages and reports what it is used for

        source = ["-f", "ONNX", "--modelFile", network["source"], "--MNNModel", network["model"]]
        _tools.mnnconvert(["mnnconvert", *source, "--bizCode", "none"])
    import MNN

    interpreter = MNN.Interpreter(network["model"])
    session = interpreter.createSession({"backend": "CPU", "numThread": 1, "precision": network["precision"]})
    given, taken = interpreter.getSessionInput(session), interpreter.getSessionOutput(session)
    layout = MNN.Tensor_DimensionType_Caffe
    x = MNN.Tensor(array.shape, MNN.Halide_Type_Float, array, layout)
    output = np.empty(taken.getShape(), np.float32)
    y = MNN.Tensor(output.shape, MNN.Halide_Type_Float, output, layout)

    def run():
        given.copyFrom(x)  # its memory is used for other tensors later
        interpreter.runSession(session)
        taken.copyToHostTensor(y)
        return np.array(y.getData(), np.float32)

    return run


ENGINES = {"mnn": mnn, "ncnn": ncnn, "onnxruntime": onnxruntime}

if __name__ == "__main__":
    main()
