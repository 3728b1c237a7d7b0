"""``metrics=``: which values go to which metric, and what is kept of them."""

import pytest
import torch

from tests.helpers import MLPTrainer, PlainTrainer, loader, make, mlp
from zae_engine.trainer.compose import AddOnBase
from zae_engine.trainer.records import recorder


class Plain(MLPTrainer):
    """Its step's outputs are for `metrics=` alone."""

    metric_on_epoch_end = PlainTrainer.metric_on_epoch_end


class Tasks(Plain):
    """Two tasks, in nests of every form."""

    def train_step(self, batch):
        values = super().train_step(batch)
        out, y = values["output"], values["target"]
        nests = {"output": {"cls": out, "pair": (out, -out)}, "target": {"cls": y, "pair": (y, y)}}
        return nests | {"loss": values["loss"], "logits": out, "labels": y, "score": out.detach().mean()}

    test_step = train_step


def accuracy():
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(3, average="micro")


def mean():
    from torchmetrics import MeanMetric

    return MeanMetric()


def by_hand(trainer, name="train_acc"):
    """The accuracy that a run with metric_on_epoch_end gives."""
    return make(MLPTrainer).run(2, loader(), loader(20)).column(name)


@pytest.mark.parametrize(
    "route",
    [
        (),
        ("output", "target"),
        ("logits", "labels"),
        ({"preds": "logits", "target": "labels"},),
        ("output.cls", "target.cls"),
        ("output.pair.0", "target.pair.1"),
    ],
)
@pytest.mark.parametrize("parts", [1, 3])
def test_a_metric_gets_what_is_named(route, parts):
    kind = Tasks if route and route != ("output", "target") else Plain
    metric = (accuracy(), *route) if route else accuracy()
    trainer = make(kind, metrics={"acc": metric}, gradient_accumulation_steps=parts)
    history = trainer.run(2, loader(), loader(20))
    wanted = make(MLPTrainer, gradient_accumulation_steps=parts).run(2, loader(), loader(20))
    for column in ("train_acc", "test_acc"):
        assert history.column(column) == pytest.approx(wanted.column(column))


def test_one_value_three_values_and_a_collection():
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassF1Score
    from torchmetrics.retrieval import RetrievalMAP

    class Retrieved(Tasks):
        def train_step(self, batch):
            values = super().train_step(batch)
            hit = values["labels"] == 0
            return values | {"first": values["logits"][:, 0], "hit": hit, "query": torch.zeros_like(values["labels"])}

        test_step = train_step

    metrics = {
        "score": (mean(), "score"),
        "map": (RetrievalMAP(), {"preds": "first", "target": "hit", "indexes": "query"}),
        "both": (MetricCollection({"acc": accuracy(), "f1": MulticlassF1Score(3)}), "logits", "labels"),
    }
    row = make(Retrieved, metrics=metrics).run(1, loader(), loader(20))[-1]
    assert {"train_map", "test_map", "train_both_acc", "test_both_f1"} <= row.keys()
    assert row["test_score"] == pytest.approx(row["test_score"])


@pytest.mark.parametrize(
    ("kind", "route", "error", "sentence"),
    [
        (
            Tasks,
            (),
            TypeError,
            r"metrics\['acc'\], a MulticlassAccuracy, does not take what train_step returned: 'output' is a dict with"
            r" 'cls', 'pair'; 'target' is a dict with 'cls', 'pair'\. It says: .*"
            r"Write metrics=\{'acc': \(metric, 'output\.cls', 'target\.cls'\)\} to name what it gets",
        ),
        (
            Tasks,
            ("labels", "logits"),
            TypeError,
            r"'labels' is a tensor of shape \(8,\) \(int64\); 'logits' is a tensor of shape \(8, 3\) \(float32\)",
        ),
        (Tasks, ("logit", "labels"), KeyError, r"metrics\['acc'\] takes 'logit', which train_step did not return"),
        (
            Tasks,
            ("output.box", "labels"),
            KeyError,
            r"takes 'output.box', .* and in 'output' 'cls', 'pair'",
        ),
        (
            PlainTrainer,
            (),
            KeyError,
            r"needs 'output' and 'target' in what train_step returns; it returned 'loss', 'num_items'",
        ),
    ],
)
def test_what_a_metric_does_not_take_is_told_at_the_first_batch(kind, route, error, sentence):
    metric = (accuracy(), *route) if route else accuracy()
    trainer = make(kind, metrics={"acc": metric})
    with pytest.raises(error, match=sentence):
        trainer.run(2, loader(), loader(20))
    assert trainer.progress_checker.get_step() == 1


@pytest.mark.parametrize("route", [(3,), ({"preds": 3},), ("logits", {"target": "labels"})])
def test_a_route_that_is_none_is_refused_when_the_trainer_is_made(route):
    with pytest.raises(TypeError, match=r"metrics\['acc'\] has .* behind its metric; give the metric alone"):
        make(Tasks, metrics={"acc": (accuracy(), *route)})
    with pytest.raises(TypeError, match=r"metrics\['acc'\]=\('logits', 'labels'\) is no metric; it has no update"):
        make(Tasks, metrics={"acc": ("logits", "labels")})


# ---------------------------------------------------------------------- what is kept


def test_what_metrics_have_taken_is_not_kept():
    trainer = make(Tasks, metrics={"acc": (accuracy(), "output.cls", "labels"), "score": (mean(), "score")})
    trainer.run(2, loader(), loader(20))
    assert sorted(trainer.log_train) == ["logits", "loss", "num_items", "score", "target"]
    for log in (trainer.log_train, trainer.log_test):
        with pytest.raises(KeyError, match=r"the values of 'output' are not kept: metrics= has had them"):
            log["output"]
        assert log.get("output", []) == []
    assert "score" in trainer.train_metrics


def test_what_an_override_may_read_is_kept_until_then():
    class Reading(AddOnBase):
        def metric_on_epoch_end(self):
            log = self.log_train if self.mode == "train" else self.log_test
            read.append((self.mode, len(log["output"]), sum(map(len, log["target"]))))
            return super().metric_on_epoch_end()

    read = []
    trainer = make(Plain.add_on(Reading), metrics={"acc": accuracy()})
    trainer.run(1, loader(), loader(20))
    assert read == [("train", 6, 45), ("test", 3, 20)]
    assert len(trainer.log_train["output"]) == 6


def test_each_step_s_values_reach_an_override_of_logging():
    class Seeing(Plain):
        def logging(self, step_dict):
            super().logging(step_dict)
            seen.append(len(step_dict["output"]))

    seen = []
    make(Seeing, metrics={"acc": accuracy()}).run(1, loader())
    assert sum(seen) == 45


@pytest.mark.parametrize("every", ["1ep", "2st"])
def test_a_validation_s_outputs_are_gone_when_it_is_over(every):
    class Looking(MLPTrainer):
        def train_step(self, batch):
            kept.append([key for key in self.log_test if key in ("output", "target")])
            return super().train_step(batch)

        def check_better(self, cur_epoch, cur_loss):
            seen.append(len(self.log_test["output"]))
            return super().check_better(cur_epoch, cur_loss)

    kept, seen = [], []
    trainer = make(Looking)
    trainer.run(2, loader(), loader(20), valid_every=every)
    assert kept == [[]] * 12
    assert set(seen) == {3}
    assert len(trainer.log_test["loss"]) == 3
    with pytest.raises(KeyError, match="the values of 'output' are not kept: a validation's are gone when it is over"):
        trainer.log_test["output"]


def test_an_evaluation_of_its_own_is_kept():
    trainer = make(MLPTrainer, mode="test")
    trainer.run(1, loader(20))
    assert sum(map(len, trainer.log_test["output"])) == 20


def test_much_that_is_kept_for_nobody_is_told_once(monkeypatch):
    monkeypatch.setattr(recorder, "_MUCH", 45 * 3 * 4 + 45 * 8 - 1)
    with pytest.warns(UserWarning, match=r"train_step returns as 'output', 'target' was kept .* 0 MiB") as told:
        make(Plain).run(3, loader())
    assert len(told) == 1
    monkeypatch.setattr(recorder, "_MUCH", 45 * 3 * 4 + 45 * 8)
    make(Plain).run(1, loader())  # and less is not


def test_a_graph_in_a_nest_is_not_kept():
    class Nested(PlainTrainer):
        def train_step(self, batch):
            out = self.model(batch[0])
            return {"loss": out.square().mean(), "nest": {"a": [out, (out, "text")]}, "list": [out]}

    trainer = make(Nested, model=mlp())
    trainer.run(1, loader())
    for nest, listed in zip(trainer.log_train["nest"], trainer.log_train["list"], strict=True):
        first, (second, text) = nest["a"]
        assert not any(each.requires_grad for each in (first, second, *listed))
        assert text == "text"


def test_metrics_that_are_assigned_bring_their_routes():
    trainer = make(Tasks, metrics={"acc": (accuracy(), "logits", "labels")})
    trainer.run(1, loader())
    trainer.metrics = {**trainer.metrics, "score": (mean(), "score")}  # the first keeps what it takes
    row = trainer.run(1, loader())[-1]
    assert {"train_acc", "train_score"} <= row.keys()
    trainer.metrics = {"acc": (accuracy(), "output.cls", "target.cls")}
    trainer.run(1, loader())
    assert "output" not in trainer.log_train
