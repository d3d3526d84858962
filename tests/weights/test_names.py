"""Names of the files and ours, both directions from one table, and tensors through them."""
from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from pellucid.errors import MisshapenTensor, MissingTensors, UnknownTensors
from pellucid.spec import Attention, DecoderSpec, Experts, FeedForward, Layer, Norm
from pellucid.weights.assemble import assemble, disassemble
from pellucid.weights.names import LeftOut, NameTable, Place, Table, To, for_adapters, left_out, old, one_by_one, to

MTP = left_out("drafts")
TABLE: Table = {
    "[transformer.]wte.weight": "embed.weight",
    "lm_head.weight": "unembed.weight",
    "[transformer.]h.{i}.attn.bias": left_out("mask"),
    "[transformer.]h.{i}.qkv.weight": to(*(f"blocks.{{i}}.attn.{x}.weight" for x in "qkv"), transpose=True),
    "[transformer.]h.{i}.grouped.weight": to(*(f"blocks.{{i}}.attn.{x}.bias" for x in "qkv"), stacked="by_kv_head"),
    "h.{i}.norm.{h}.weight": to("blocks.{i}.attn.q_norm.weight", index=True),
    "h.{i}.experts.{e}.up": "blocks.{i}.mlp.experts.{e}.up.weight",
    "memory.h.{i}.experts.{e}.up": old("blocks.{i}.mlp.experts.{e}.up.weight"),
    "vision.{*}": left_out("vision"),
}
MIXER = Attention(n_heads=4, n_kv_heads=2, d_head=3, scale=1.0, qkv_bias=True)
SPEC = DecoderSpec(family="test", n_vocab=7, n_ctx=8, d_model=5, layers=(Layer(mixer=MIXER, mlp=FeedForward(d_ff=4)),) * 2, norm=Norm(eps=1e-5))
SHAPES = {"embed.weight": (7, 5), "unembed.weight": (7, 5), **{f"blocks.{i}.{name}": shape for i in range(2) for name, shape in {
    "attn.q.weight": (12, 5), "attn.k.weight": (6, 5), "attn.v.weight": (6, 5), "attn.q.bias": (12,), "attn.k.bias": (6,), "attn.v.bias": (6,),
    "attn.q_norm.weight": (4, 3), "mlp.experts.0.up.weight": (4, 5), "mlp.experts.1.up.weight": (4, 5)}.items()}}


def files() -> dict[str, Tensor]:
    """A checkpoint that TABLE describes, every number different."""
    shapes = {"transformer.wte.weight": (7, 5), "lm_head.weight": (7, 5), **{name: shape for i in range(2) for name, shape in {
        f"transformer.h.{i}.qkv.weight": (5, 24), f"transformer.h.{i}.grouped.weight": (24,), **{f"h.{i}.norm.{h}.weight": (3,) for h in range(4)},
        **{f"h.{i}.experts.{e}.up": (4, 5) for e in range(2)}}.items()}}
    counter = 0
    out = {}
    for name, shape in shapes.items():
        size = torch.Size(shape).numel()
        out[name] = torch.arange(counter, counter + size, dtype=torch.float32).view(shape)
        counter += size
    return out


def ours(checkpoint: dict[str, Tensor], spec: DecoderSpec = SPEC) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    shapes = {name: shape for name, shape in SHAPES.items() if not (spec.tied and name == "unembed.weight")}
    return assemble(NameTable(TABLE), checkpoint.items(), shapes, spec)


def tied(copy: bool) -> tuple[DecoderSpec, dict[str, Tensor]]:

    checkpoint = files()
    del checkpoint["lm_head.weight"]
    return dataclasses.replace(SPEC, tied=True), checkpoint | ({"lm_head.weight": checkpoint["transformer.wte.weight"].clone()} if copy else {})


def test_a_name_gets_its_place() -> None:
    table = NameTable(TABLE)
    assert table.place("wte.weight") == table.place("transformer.wte.weight") == Place(To(("embed.weight",)), ("embed.weight",))
    assert table.place("h.12.experts.3.up") == Place(To(("blocks.{i}.mlp.experts.{e}.up.weight",)), ("blocks.12.mlp.experts.3.up.weight",))
    where = table.place("h.1.norm.2.weight")
    assert isinstance(where, Place)
    assert (where.names, where.head) == (("blocks.1.attn.q_norm.weight",), 2)
    assert table.place("h.0.attn.bias") == LeftOut("mask")
    assert table.place("vision.tower.9.anything") == LeftOut("vision")
    for stranger in ("h.x.attn.bias", "xwte.weight", "wte.weight.x", "wteXweight"):
        assert table.place(stranger) is None


def test_an_old_spelling_is_read_and_never_written() -> None:
    table = NameTable(TABLE)
    place = table.place("memory.h.0.experts.1.up")
    assert isinstance(place, Place)
    assert place.names == ("blocks.0.mlp.experts.1.up.weight",)
    assert table.theirs("blocks.0.mlp.experts.1.up.weight") == "h.0.experts.1.up"
    assert not [name for name in disassemble(table, ours(files())[0], SPEC) if name.startswith("memory")]
    assert old(left_out("x")) == left_out("x")


@pytest.mark.parametrize(("name", "expected"), [
    ("h.2.attn.bias", LeftOut("mask")), ("h.2.experts.0.up", MTP), ("model.layers.2.eh_proj.weight", MTP), ("model.layers.3.enorm.weight", MTP),
    ("model.layers.4.enorm.weight", None), ("model.layers.1.enorm.weight", None), ("eh_proj.weight", None)])
def test_layers_past_the_last_are_left_out_only_as_many_as_the_config_counts(name: str, expected: LeftOut | None) -> None:
    assert NameTable(TABLE, past_last=(2, 2, MTP)).place(name) == expected


def test_there_and_back_is_bit_exact() -> None:
    checkpoint = files()
    mine, left = ours(checkpoint)
    assert mine.keys() == SHAPES.keys()
    assert not left
    back = disassemble(NameTable(TABLE), mine, SPEC)
    assert back.keys() == checkpoint.keys()
    assert all(back[name].equal(tensor) and back[name].is_contiguous() for name, tensor in checkpoint.items())


def test_stacked_rows_land_where_they_belong() -> None:
    checkpoint = files()
    mine, _ = ours(checkpoint)
    whole = checkpoint["transformer.h.1.qkv.weight"].T
    assert mine["blocks.1.attn.q.weight"].equal(whole[:12])
    assert mine["blocks.1.attn.k.weight"].equal(whole[12:18])
    assert mine["blocks.1.attn.v.weight"].equal(whole[18:])
    heads = checkpoint["transformer.h.0.grouped.weight"].view(2, 4, 3)  # a kv head: its two queries, its key, its value
    assert mine["blocks.0.attn.q.bias"].equal(heads[:, :2].reshape(-1))
    assert mine["blocks.0.attn.k.bias"].equal(heads[:, 2].reshape(-1))
    assert mine["blocks.0.attn.v.bias"].equal(heads[:, 3].reshape(-1))
    assert mine["blocks.1.attn.q_norm.weight"][2].equal(checkpoint["h.1.norm.2.weight"])


def test_nothing_is_copied_that_need_not_be() -> None:
    checkpoint = files()
    mine, _ = ours(checkpoint)
    for theirs, name in (("transformer.wte.weight", "embed.weight"), ("transformer.h.0.qkv.weight", "blocks.0.attn.q.weight")):
        assert mine[name].data_ptr() == checkpoint[theirs].data_ptr()


def test_left_out_tensors_are_listed_by_reason() -> None:
    extra = {"h.0.attn.bias": torch.zeros(1), "h.1.attn.bias": torch.zeros(1), "vision.x": torch.zeros(1)}
    assert ours(files() | extra)[1] == {"mask": ["h.0.attn.bias", "h.1.attn.bias"], "vision": ["vision.x"]}


def test_a_tied_copy_is_left_out_when_equal_and_stands_in_when_alone() -> None:
    spec, checkpoint = tied(copy=True)
    mine, left = ours(checkpoint, spec)
    assert left == {"a copy of the tied embedding": ["lm_head.weight"]}
    embedding = checkpoint.pop("transformer.wte.weight")
    mine, left = ours(checkpoint, spec)
    assert mine["embed.weight"].equal(embedding)
    assert not left


# ---- what is wrong


def message(checkpoint: dict[str, Tensor], error: type[Exception], spec: DecoderSpec = SPEC) -> str:
    with pytest.raises(error) as raised:
        ours(checkpoint, spec)
    return str(raised.value)


def test_tensors_without_a_place_are_named() -> None:
    text = message(files() | {"h.0.attn.q_norm": torch.zeros(1), "a.b": torch.zeros(1)}, UnknownTensors)
    assert text == ("2 tensors in the checkpoint have no place in family 'test' with these settings, first: a.b, h.0.attn.q_norm. "
                    "Is model_type in config.json the right one?")
    assert message(files() | {"h.7.experts.0.up": torch.zeros(4, 5)}, UnknownTensors).startswith("1 tensor in the checkpoint has no place")


def test_missing_tensors_are_named_as_in_the_files() -> None:
    checkpoint = files()
    del checkpoint["h.1.experts.0.up"], checkpoint["transformer.h.0.qkv.weight"]
    assert message(checkpoint, MissingTensors) == (
        "the checkpoint lacks 4 of 20 tensors that family 'test' needs, first: transformer.h.0.qkv.weight. "
        "Is a shard missing, or model_type in config.json wrong?")


def test_a_misshapen_tensor_names_both_shapes() -> None:
    checkpoint = files() | {"transformer.h.0.qkv.weight": torch.zeros(5, 23)}
    assert message(checkpoint, MisshapenTensor) == (
        "transformer.h.0.qkv.weight has shape (23, 5), and config.json makes it (24, 5) (blocks.0.attn.q.weight). "
        "Do config.json and the weights belong together?")
    assert "h.0.norm.{h}.weight has shape (2,), and config.json makes it (3,)" in message(files() | {"h.0.norm.1.weight": torch.zeros(2)}, MisshapenTensor)


def test_a_head_that_is_missing() -> None:
    checkpoint = files()
    checkpoint["h.0.norm.5.weight"] = checkpoint.pop("h.0.norm.3.weight")
    assert message(checkpoint, MissingTensors) == "h.0.norm.{h}.weight is there for heads [0, 1, 2, 5], and 4 heads were expected. Is a shard missing?"


def test_two_spellings_of_one_tensor() -> None:
    assert message(files() | {"wte.weight": torch.zeros(7, 5)}, UnknownTensors) == (
        "wte.weight is a second tensor for embed.weight: the checkpoint holds two spellings of one name. Which of the two is meant, nothing says; "
        "remove one.")


def test_an_unembedding_that_is_not_tied_after_all() -> None:
    spec, checkpoint = tied(copy=True)
    checkpoint["lm_head.weight"] += 1
    assert message(checkpoint, MisshapenTensor, spec) == (
        "lm_head.weight differs from the embedding, but config.json says tie_word_embeddings=true. One of them is wrong; "
        "set tie_word_embeddings to false to use both.")


def test_a_tensor_of_ours_that_no_name_holds() -> None:
    mine, _ = ours(files())
    with pytest.raises(UnknownTensors, match=r"^family 'test' has no checkpoint name for 1 tensors, first: blocks.0.attn.z.weight$"):
        disassemble(NameTable(TABLE), mine | {"blocks.0.attn.z.weight": torch.zeros(1)}, SPEC)


# One tensor of all experts.

STACKED: Table = {
    "h.{i}.up_and_gate": to("blocks.{i}.mlp.experts.{e}.gate.weight", "blocks.{i}.mlp.experts.{e}.up.weight", transpose=True, stacked="interleaved",
                            all_experts=True),
    "h.{i}.bias": to("blocks.{i}.mlp.experts.{e}.gate.bias", "blocks.{i}.mlp.experts.{e}.up.bias", all_experts=True),
    "h.{i}.down": to("blocks.{i}.mlp.experts.{e}.down.weight", all_experts=True),
}
MIXTURE = Experts(n_experts=3, n_active=1, renormalize=False, each=FeedForward(d_ff=2, bias=True))
SPARSE = dataclasses.replace(SPEC, layers=(Layer(mixer=MIXER, mlp=FeedForward(d_ff=4)), Layer(mixer=MIXER, mlp=MIXTURE)))
EXPERT_SHAPES = {f"blocks.1.mlp.experts.{e}.{name}": shape for e in range(3) for name, shape in {
    "gate.weight": (2, 5), "up.weight": (2, 5), "gate.bias": (2,), "up.bias": (2,), "down.weight": (5, 2)}.items()}


def stacked_files() -> dict[str, Tensor]:
    return {"h.1.up_and_gate": torch.arange(60.0).view(3, 5, 4), "h.1.bias": torch.arange(100.0, 112.0).view(3, 4),
            "h.1.down": torch.arange(200.0, 230.0).view(3, 5, 2)}


def test_one_tensor_of_all_experts_is_taken_apart_and_put_together_again() -> None:
    checkpoint = stacked_files()
    found, _ = assemble(NameTable(STACKED), checkpoint.items(), EXPERT_SHAPES, SPARSE)
    whole = checkpoint["h.1.up_and_gate"]
    for e in range(3):
        for column in range(4):  # in the file the columns are gate 0, up 0, gate 1, up 1
            ours = found[f"blocks.1.mlp.experts.{e}.{'up' if column % 2 else 'gate'}.weight"]
            assert torch.equal(ours[column // 2], whole[e, :, column])
        assert torch.equal(found[f"blocks.1.mlp.experts.{e}.gate.bias"], checkpoint["h.1.bias"][e, :2])
        assert torch.equal(found[f"blocks.1.mlp.experts.{e}.up.bias"], checkpoint["h.1.bias"][e, 2:])
        assert torch.equal(found[f"blocks.1.mlp.experts.{e}.down.weight"], checkpoint["h.1.down"][e])
    saved = disassemble(NameTable(STACKED), found, SPARSE)
    assert saved.keys() == checkpoint.keys()
    for name, tensor in saved.items():
        assert torch.equal(tensor, checkpoint[name])
        assert tensor.is_contiguous()


def test_the_rows_of_all_experts_may_follow_one_another() -> None:
    table: Table = {"h.{i}.gate": to("blocks.{i}.mlp.experts.{e}.gate.weight", all_experts="rows"),
                    "h.{i}.down": to("blocks.{i}.mlp.experts.{e}.down.weight", transpose=True, all_experts="rows")}
    needed = {name: shape for name, shape in EXPERT_SHAPES.items() if "gate.weight" in name or "down" in name}
    checkpoint = {"h.1.gate": torch.arange(30.0).view(6, 5), "h.1.down": torch.arange(100.0, 130.0).view(6, 5)}
    found, _ = assemble(NameTable(table), checkpoint.items(), needed, SPARSE)
    for e in range(3):
        assert torch.equal(found[f"blocks.1.mlp.experts.{e}.gate.weight"], checkpoint["h.1.gate"][2 * e : 2 * e + 2])
        assert torch.equal(found[f"blocks.1.mlp.experts.{e}.down.weight"], checkpoint["h.1.down"][2 * e : 2 * e + 2].T)
    saved = disassemble(NameTable(table), found, SPARSE)
    assert saved.keys() == checkpoint.keys()
    assert all(torch.equal(tensor, checkpoint[name]) and tensor.is_contiguous() for name, tensor in saved.items())
    with pytest.raises(MisshapenTensor, match=r"^h.1.gate has 5 rows, and config.json counts 3 experts. Do they belong together\?$"):
        assemble(NameTable(table), {**checkpoint, "h.1.gate": torch.zeros(5, 5)}.items(), needed, SPARSE)


def test_all_experts_of_one_tensor_are_counted() -> None:
    checkpoint = stacked_files()
    fewer = checkpoint | {"h.1.bias": checkpoint["h.1.bias"][:2]}
    with pytest.raises(MisshapenTensor, match=r"^h.1.bias holds 2 experts, and config.json counts 3. Do they belong together\?$"):
        assemble(NameTable(STACKED), fewer.items(), EXPERT_SHAPES, SPARSE)
    for dense in ("h.0.bias", "h.7.bias"):  # a layer without experts, and one that is not there
        with pytest.raises(UnknownTensors, match=f"has no place in family 'test' with these settings, first: {dense}"):
            assemble(NameTable(STACKED), {**checkpoint, dense: checkpoint["h.1.bias"]}.items(), EXPERT_SHAPES, SPARSE)
    with pytest.raises(MissingTensors, match=r"lacks 3 of 15 tensors that family 'test' needs, first: h.1.down"):
        assemble(NameTable(STACKED), {k: v for k, v in checkpoint.items() if k != "h.1.down"}.items(), EXPERT_SHAPES, SPARSE)


def test_shards_hold_their_share_of_every_tensor() -> None:
    """Three shards of [q v k], whatever the number of heads: rows of one of ours come from all three."""
    table = NameTable({"h.{i}.qvk": to(*(f"blocks.{{i}}.attn.{x}.weight" for x in "qvk"), stacked=3)})
    checkpoint = {f"h.{i}.qvk": torch.arange(24 * 5, dtype=torch.float32).view(24, 5) + i for i in range(2)}
    shapes = {name: shape for name, shape in SHAPES.items() if name.endswith(("q.weight", "k.weight", "v.weight"))}
    tensors, _ = assemble(table, checkpoint.items(), shapes, SPEC)
    shards = checkpoint["h.1.qvk"].view(3, 8, 5)  # each: four rows of q, two of v, two of k
    for x, rows in {"q": slice(0, 4), "v": slice(4, 6), "k": slice(6, 8)}.items():
        assert torch.equal(tensors[f"blocks.1.attn.{x}.weight"], shards[:, rows].flatten(0, 1))
    saved = disassemble(table, tensors, SPEC)
    assert saved.keys() == checkpoint.keys()
    assert all(torch.equal(saved[name], checkpoint[name]) for name in saved)


def test_a_name_that_holds_for_other_specs_is_neither_read_nor_written() -> None:
    table = NameTable({"wide.weight": to("embed.weight", when=lambda spec: spec.d_model > 5),
                       "narrow.weight": to("embed.weight", when=lambda spec: spec.d_model <= 5)})
    shapes, tensor = {"embed.weight": (7, 5)}, torch.ones(7, 5)
    tensors, _ = assemble(table, [("narrow.weight", tensor)], shapes, SPEC)
    assert disassemble(table, tensors, SPEC).keys() == {"narrow.weight"}
    with pytest.raises(UnknownTensors, match=r"1 tensor in the checkpoint has no place in family 'test' with these settings, first: wide\.weight"):
        assemble(table, [("wide.weight", tensor)], shapes, SPEC)


def test_experts_with_one_parameter_are_held_there_together_in_the_tables_order() -> None:
    table: Table = {"h.{i}.router": to("blocks.{i}.mlp.router.weight", parameter="h.{i}.gate"), "h.{i}.o": "blocks.{i}.attn.o.weight",
                    **{f"h.{{i}}.{x}.{{e}}": to(f"blocks.{{i}}.mlp.experts.{{e}}.{x}.weight", parameter=f"h.{{i}}.{at}")
                       for x, at in (("gate", "gate_up"), ("down", "down"), ("up", "gate_up"))}}
    names = {x: f"blocks.{{i}}.mlp.experts.{{e}}.{x}.weight" for x in ("gate", "up", "down")}
    assert for_adapters(table) == {"h.{i}.gate": table["h.{i}.router"], "h.{i}.o": "blocks.{i}.attn.o.weight",
                                   "h.{i}.gate_up": To((names["gate"], names["up"]), all_experts=True), "h.{i}.down": To((names["down"],), all_experts=True)}
    assert for_adapters(table, stacked=False) == table
    assert for_adapters(one_by_one(table)).keys() == table.keys()
