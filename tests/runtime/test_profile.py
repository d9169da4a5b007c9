from __future__ import annotations

from tvmq.runtime.profile import layers_of_calls


def layers(*functions: str | None) -> list[dict[str, object]]:
    return [{"name": f"layer{index}", "function": function} for index, function in enumerate(functions)]


def names(functions: list[str], *of_layers: str | None) -> list[str | None]:
    found = layers_of_calls(functions, layers(*of_layers))
    return [None if layer is None else str(layer["name"]) for layer in found]


def test_calls_between_layers_belong_to_none():
    assert names(["quantize", "conv", "pool", "dense"], "conv", "dense") == [None, "layer0", None, "layer1"]


def test_one_function_can_run_several_layers():
    assert names(["conv", "pool", "conv", "conv1"], "conv", "conv", "conv1") == ["layer0", None, "layer1", "layer2"]


def test_layers_without_functions_are_not_guessed():
    assert names(["conv", "dense"], "conv", None) == [None, None]


def test_layers_in_another_order_than_the_calls_are_not_guessed():
    assert names(["dense", "conv"], "conv", "dense") == [None, None]


def test_no_layers():
    assert names(["quantize"]) == [None]
