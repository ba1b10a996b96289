"""What each stage of an iteration costs, against a plain baseline in the same run.

    python -m benchmarks.rollout
    python -m benchmarks.update
    python -m benchmarks.rewards
    python -m benchmarks.energy
    python -m benchmarks.iteration
    python -m benchmarks.accelerator

`--help` names the sizes that can be varied. Figures and how they were taken are in
docs/performance.md.
"""
