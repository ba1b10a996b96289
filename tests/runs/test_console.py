import jax
import jax.numpy as jnp

from chemeleon_jax.runs import console


def test_a_start_says_what_runs_and_that_it_compiles(capsys):
    console.say_start(
        {"model": "mini:ldm"}, "my runs/a", start=0, total=200, unit="iteration"
    )
    assert capsys.readouterr().out.splitlines() == [
        "model    mini:ldm",
        "devices  4 x cpu",
        "run      my runs/a, iterations: 200",
        "curves   tensorboard --logdir 'my runs'",
        "compiling; the first iteration takes a minute with the mini model on two CPU "
        "cores, longer with a larger one",
    ]
    console.say_start({}, "runs/a", start=20, total=20, unit="step")
    out = capsys.readouterr().out
    assert "runs/a, continues after step 20 of 20" in out
    assert "compiling" not in out


def test_the_end_says_commands_that_a_shell_takes(capsys):
    console.say_next("done:", [["chemeleon_jax.report", "my runs/a"]])
    assert capsys.readouterr().out.splitlines() == [
        "done:",
        "  python -m chemeleon_jax.report 'my runs/a'",
    ]


def test_other_processes_say_nothing(capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    console.say("nothing")
    assert capsys.readouterr().out == ""


def test_progress_shows_the_shares_that_there_are():
    metrics = {
        "reward": jnp.float32(0.41239),
        "kl_div": 1.23456e-5,
        "valid": 0.96875,
        "unique": 1.0,
        "msun": 0.0573,
        "metastable": float("nan"),  # no energy is in the reward
    }
    assert console.progress_numbers(metrics) == {
        "reward": "0.4124",
        "valid": "96.9 %",
        "unique": "100 %",
        "MSUN": "5.73 %",
        "KL": "1.23e-05",
    }


def test_parameters_are_counted():
    params = {"w": jnp.zeros((1000, 2000)), "b": jnp.zeros(500_000)}
    assert console.count_parameters(params) == "2,500,000 parameters"
