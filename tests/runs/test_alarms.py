import math

from chemeleon_jax.runs.alarms import Alarms, explain_skipped


def test_an_alarm_is_said_once_and_counted_while_it_lasts(caplog):
    alarms = Alarms({"kl_div": 0.5, "ratio_max": math.inf})
    counts, said = [], []
    for iteration, kl in enumerate([0.4, 0.6, 0.7, 0.5, math.nan, 0.9]):
        caplog.clear()
        found = alarms.check(iteration, {"kl_div": kl, "ratio_max": 1e9})
        assert found["alarm/ratio_max"] == 0
        counts.append(found["alarm/kl_div"])
        said += caplog.messages
    assert counts == [0, 1, 1, 0, 0, 1]
    assert said == [
        "iteration 2: kl_div is 0.6, above its alarm at 0.5",
        "iteration 6: kl_div is 0.9, above its alarm at 0.5",
    ]


def test_whoever_raises_an_alarm_is_named_once(caplog):
    alarms = Alarms({"element_growth": 3.0})
    found = alarms.check(4, {}, {"element_growth": ("Zr", "is in 14% of crystals")})
    assert found == {"alarm/element_growth": 0}
    for iteration, who in enumerate(["Zr", "Zr", "H", "Zr", "H"], 5):
        alarms.check(
            iteration, {"element_growth": 5.26}, {"element_growth": (who, "is common")}
        )
    assert caplog.messages == [
        "iteration 6: element_growth is 5.26, above its alarm at 3: Zr is common",
        "iteration 8: element_growth is 5.26, above its alarm at 3: H is common",
    ]


def test_the_cause_of_skipped_updates_is_named():
    metrics = {"loss": math.nan, "custom": -math.inf, "kl_div": 0.1}
    message = explain_skipped(41, metrics | {"skipped_in_a_row": 10})
    assert message.startswith("iteration 42: the 10th in a row")
    assert "(loss nan, custom -inf)" in message
