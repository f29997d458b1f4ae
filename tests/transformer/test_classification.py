"""Classification of sequences and images: embedding, head, loss, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_walks import base, drive, losses, machine_of, plan_of, problems_of, weights
from torch import nn

from stackwise import BuildContext, DataError, Moment, UserError
from stackwise.assembly.pricing import price
from stackwise_providers_transformer.classification import Classification
from stackwise_providers_transformer.classification_options import ClassificationOptions, ClassifierOptions, PatchOptions
from stackwise_providers_transformer.patch import PatchEmbedding, build_patch
from stackwise_providers_transformer.row_heads import build_classifier

MOMENT = Moment(0, 0.0, "only", 0, 0.0, 0)


def test_patches_are_a_strided_convolution() -> None:
    """A linear map of every piece is a convolution whose stride is its kernel."""
    torch.manual_seed(0)
    embedding = PatchEmbedding(PatchOptions(patch=3, rows=9, columns=6, channels=2, width=5, positions="none", init_std=0.5))
    nn.init.normal_(embedding.project.bias)
    image = torch.randn(4, 9, 6, 2)
    kernel = embedding.project.weight.view(5, 3, 3, 2).permute(0, 3, 1, 2)
    expected = F.conv2d(image.permute(0, 3, 1, 2), kernel, embedding.project.bias, stride=3).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embedding(image=image), expected)
    placed = PatchEmbedding(PatchOptions(patch=3, rows=9, columns=6, channels=2, width=5, init_std=0.5))
    placed.project.load_state_dict(embedding.project.state_dict())
    torch.testing.assert_close(placed(image=image), expected + placed.positions.weight)


def test_a_patch_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(UserError, match="patch: pieces of 3 pixels do not divide 8 columns"):
        PatchOptions(patch=3, rows=9, columns=8)
    with pytest.raises(UserError, match="channels: it has no size yet"):
        build_patch(PatchOptions(patch=3, rows=9, columns=9, width=4), BuildContext(seed=0))


@pytest.mark.parametrize("pool", ["mean", "first", "last"])
def test_a_padded_row_is_pooled_as_the_row_alone(pool: str) -> None:
    torch.manual_seed(0)
    head = build_classifier(ClassifierOptions(classes=3, width=4, pool=pool, init_std=1.0), BuildContext(seed=0))
    hidden = torch.randn(2, 6, 4)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    given = {"mask": mask} if "mask" in head.get_spec().side else {}
    padded = head(hidden, **given)["logits"]
    alone = torch.cat([head(hidden[:1])["logits"], head(hidden[1:, :2])["logits"]])
    torch.testing.assert_close(padded, alone)


def test_the_loss_is_the_sum_over_rows_and_a_zero_head_is_worth_ln_c() -> None:
    head = build_classifier(ClassifierOptions(classes=7, width=4, init_std=0.0), BuildContext(seed=0))
    task = Classification(ClassificationOptions())
    batch = {"label": torch.tensor([0, 6, 3])}
    total, rows, metrics = task.loss(head(torch.randn(3, 5, 4)), batch)
    assert rows == 3 and float(total.detach() / rows) == pytest.approx(math.log(7), rel=1e-6)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    total, rows, metrics = task.loss({"logits": logits}, {"label": torch.tensor([0, 1, 1])})
    assert float(total) == pytest.approx(sum(math.log1p(math.exp(x)) for x in (-2.0, -1.0, 3.0)), rel=1e-6)
    assert (float(metrics["accuracy"][0]), metrics["accuracy"][1]) == (2, 3)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_no_class_is_refused(label: int) -> None:
    task = Classification(ClassificationOptions(), classes=4)
    with pytest.raises(DataError, match=f"a row has the label {label}; the classes are 0 to 3"):
        task.prepare({"tokens": torch.zeros(2, 3, dtype=torch.int64), "label": torch.tensor([0, label])}, MOMENT, torch.Generator())


# -- from a config --------------------------------------------------------------------------------------------------


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images() -> dict[str, Any]:
    """Images with a bright quarter, which is the class."""
    label = torch.randint(4, (400,), generator=_generator())
    image = torch.rand(400, 8, 8, 1, generator=_generator(1), dtype=torch.float64)
    for i, quarter in enumerate(label.tolist()):
        image[i, 4 * (quarter // 2) : 4 * (quarter // 2) + 4, 4 * (quarter % 2) : 4 * (quarter % 2) + 4] += 0.5
    return {"use": "data.memory", "arrays": {"image": image, "label": label}, "heldout": 0.25}


def image_config(rack: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return base(
        run={"name": "images", "seed": 1, "horizon": "150 steps", "device": "cpu"},
        task={"use": "transformer.classification", "input": "image"},
        data={"sources": {"a": images()}, "batch_size": 32},
        model={
            "embedding": {"use": "transformer.patch", "patch": 4},
            "rack": rack,
            "head": {"use": "transformer.classifier", "classes": 4},
        },
        optimizer={"use": "optim.adamw", "lr": 0.01},
        evaluate={"held": {"batches": 3}},
        **sections,
    )


RACKS = {
    "decoder": {"use": "transformer.decoder", "width": 16, "heads": 2, "stacks": [{"base": 1}]},
    "conv": {"use": "transformer.conv", "width": 16, "stacks": [{"base": 1}], "kernel": 3},
}


@pytest.mark.parametrize("rack", RACKS)
def test_images_are_learnt_with_and_without_attention(rack: str) -> None:
    events = drive(machine_of(image_config(RACKS[rack])))
    last = [event for event in events if type(event).__name__ == "Evaluated"][-1]
    assert last.metrics["accuracy"] > 0.9 and last.metrics["loss"] < 0.4 < math.log(4)


def test_sizes_of_an_image_come_from_its_array_and_the_plan_is_priced() -> None:
    plan = plan_of(image_config(RACKS["decoder"]))
    options = plan.joined[0].drafts.embedding.options
    assert (options.rows, options.columns, options.channels, options.width) == (8, 8, 1, 16)
    assert plan.joined[0].drafts.rack.options.attention == "bidirectional"
    assert price(plan)[0].flops


def sequences() -> dict[str, Any]:
    """Rows of which the class is whether a 3 stands in them, most of them padded."""
    tokens = torch.randint(1, 3, (400, 12), generator=_generator())
    label = torch.randint(2, (400,), generator=_generator(1))
    length = torch.randint(4, 13, (400,), generator=_generator(2))
    mask = torch.arange(12)[None] < length[:, None]
    tokens[torch.arange(400), torch.randint(4, (400,), generator=_generator(3))] += 3 * label
    tokens = torch.where(mask, tokens.clamp(max=3), torch.randint(4, (400, 12), generator=_generator(4)))
    return {"use": "data.memory", "arrays": {"tokens": tokens, "mask": mask, "label": label}, "heldout": 0.25, "time": ["tokens", "mask"]}


@pytest.mark.parametrize("rack", RACKS)
def test_sequences_are_learnt_and_padding_is_never_read(rack: str) -> None:
    """The padding is full of 3s, which would be the class of every row."""
    config = base(
        run={"name": "sequences", "seed": 1, "horizon": "80 steps", "device": "cpu"},
        task={"use": "transformer.classification"},
        data={"sources": {"a": sequences()}, "batch_size": 32, "seq_len": 12},
        model={
            "embedding": {"use": "transformer.token", "vocab": 4},
            "rack": RACKS[rack],
            "head": {"use": "transformer.classifier", "classes": 2},
        },
        evaluate={"held": {"batches": 3}},
    )
    last = [event for event in drive(machine_of(config)) if type(event).__name__ == "Evaluated"][-1]
    assert last.metrics["accuracy"] > 0.95


def test_a_head_for_tokens_is_refused_and_a_missing_label_too() -> None:
    config = image_config(RACKS["decoder"])
    config["model"]["head"] = {"use": "transformer.lm", "vocab": 4, "tied": False}
    (problem,) = problems_of(config)
    for part in ("head 'transformer.lm' (stackwise-providers-transformer", "task 'transformer.classification'", "batch classes"):
        assert part in problem.message
    config = image_config(RACKS["decoder"])
    del config["data"]["sources"]["a"]["arrays"]["label"]
    (problem,) = problems_of(config)
    for part in (
        "task 'transformer.classification' (stackwise-providers-t",
        "needs 'label'",
        "loader 'data.memory' (stackwise-providers-data",
    ):
        assert part in problem.message


def test_pre_training_then_classification_over_one_rack_with_another_head() -> None:
    arrays = sequences()["arrays"]
    config = base(
        task={"use": "transformer.masked-lm"},
        data={"sources": {"a": {**sequences()}}, "batch_size": 16, "seq_len": 12, "drop": ["label"]},
        model={"embedding": {"use": "transformer.token", "vocab": 5}, "rack": RACKS["decoder"], "head": {"use": "transformer.lm"}},
        phases={
            "pre-train": {"until": "6 steps"},
            "classify": {
                "task": {"use": "transformer.classification"},
                "data": {"drop": None},
                "model": {"head": {"use": "transformer.classifier", "classes": 2}},
            },
        },
    )
    assert set(arrays) == {"tokens", "mask", "label"}
    machine, before = machine_of(config), {}
    entered = []
    for event in machine.train():
        if type(event).__name__ == "StepDone" and event.step == 5:
            before = weights(machine)
        if type(event).__name__ == "PhaseEntered" and event.phase == "classify":
            entered.append(event)
            after = weights(machine)
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert after.keys() - before.keys() == {"head.output.weight", "head.output.bias"}
    (event,) = entered
    assert (event.fresh, event.dropped) == (2, 0)
    assert len(losses(drive(machine_of(config)))) == 12
