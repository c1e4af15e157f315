"""A trial's folder, and what is written there."""

from pathlib import Path

from prefixray.config.trials import LoraTrial, TrialConfig
from prefixray.trial import Report, TrialFolder, TrialSpec


def test_a_trials_folder_knows_its_checkpoints_and_deletes_them_alone(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "lora" / "0")
    assert folder.checkpoint_steps() == [] and folder.result() is None, "there is no folder yet"
    for name in ("step-9", "step-10", ".step-11.0a.tmp", "step-old", "artifact"):
        (folder.path / name).mkdir(parents=True)
    assert folder.checkpoint_steps() == [10, 9]
    folder.delete_checkpoints()
    assert sorted(path.name for path in folder.path.iterdir()) == ["artifact", "step-old"]


def test_a_trial_writes_where_it_runs_and_how_it_ended(tmp_path: Path) -> None:
    config = TrialConfig(arm="lora", learning_rate=1e-3, num_steps=10, method=LoraTrial(rank=1))
    spec = TrialSpec("lora/0", config, seed=1, replicate=2, rungs=(), folder=str(tmp_path / "lora" / "0"))
    spec.place_on("worker-0")
    spec.place_on("worker-1")
    assert spec.placed_on() == "worker-1"
    spec.write_result(Report("lora/0", 10, "running", {"dev/loss": 2.0}, note="at rung 1"), "stopped")
    result = TrialFolder(tmp_path / "lora" / "0").result()
    assert result is not None and (result["state"], result["replicate"], result["step"]) == ("stopped", 2, 10)
    assert TrialConfig.model_validate(result["config"]) == config
