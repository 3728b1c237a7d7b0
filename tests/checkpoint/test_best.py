"""The one rule for what is the best, and what a metric's name tells of it."""

import math

import pytest

from zae_engine.checkpoint.best_rule import direction_of, first_best, is_better, ranked

VALUES = [20.0, math.inf, 25.0, math.nan, None, 25.0, -math.inf, 10**400]


@pytest.mark.parametrize(("mode", "order"), [("max", [2, 5, 0]), ("min", [0, 2, 5])])
def test_only_finite_values_count_and_of_equal_ones_the_first(mode, order):
    assert ranked(range(len(VALUES)), lambda place: VALUES[place], mode) == order
    assert first_best(range(len(VALUES)), lambda place: VALUES[place], mode) == order[0]
    assert first_best([math.nan], float, mode) is None


@pytest.mark.parametrize("mode", ["min", "max"])
def test_better_than_nothing_is_whatever_is_finite(mode):
    for nothing in (None, math.nan, math.inf, -math.inf):
        assert is_better(-3.0, nothing, mode)
        assert not is_better(math.inf, nothing, mode)
        assert not is_better(math.nan, nothing, mode)
    assert not is_better(1.0, 1.0, mode)
    assert is_better(1.0, 2.0, mode) == (mode == "min")
    assert not is_better(1.0, 2.0, "min", by=1.0)


NAMES = {
    "max": "acc val_acc test_acc valid/acc Acc accuracy top1 top5_acc acc@5 mAP mAP50 map_50 valAcc MulticlassAccuracy"
    " BinaryF1Score f1 f1_macro AUROC roc_auc auc r2 r2_score R2 PSNR psnr ms_ssim mIoU dice recall precision BLEU4"
    " nDCG night_f1 ROUGE-L hits@10",
    "min": "loss val_loss train_loss night_b_loss Loss dice_loss IoULoss focalloss acc_loss error error_rate top1_err"
    " word_error_rate perplexity ppl WER cer mse RMSE mae meanAbsoluteError fid LPIPS nll kl",
    None: "score off sum lr step acc_drop 1-acc neg_loss negative_acc loss_acc lossWeight std_acc classes mapping",
}


@pytest.mark.parametrize("mode", NAMES)
def test_names_that_tell_their_direction(mode):
    names = NAMES[mode].split()
    assert {name: direction_of(name) for name in names} == dict.fromkeys(names, mode)
