"""A sweep's folder, `runs/NAME`: where its files lie, and what a driver writes there.

One driver at a time: the kernel locks the folder, so a killed driver's lock is gone with its process.
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefixray.config.files.written import as_yaml
from prefixray.config.identity import differences, dump, identity, stored_config
from prefixray.config.schema import SweepConfig
from prefixray.data.documents.made import FOLDER, SEARCHED
from prefixray.errors import UserError
from prefixray.reporting.page import write_page
from prefixray.reporting.tables import csv_rows, csv_text, render_markdown, trial_rows
from prefixray.results.outputs import write_outputs
from prefixray.results.record import ExampleOutputs, Results, Stored, is_finished, load_results
from prefixray.search.policies.choice import with_rules
from prefixray.system.atomic_files import write_whole
from prefixray.trial import TrialFolder, final_name

logger = logging.getLogger(__name__)

PRECISION = "train.precision"
"""The key in `digests.json` of the precision in which a sweep began."""
COMMIT = "commit of base"
"""The key there of the commit of a hub's base."""
TOKENS = "task in tokens of base"
"""The key there of the rows that the base's tokenizer has made of the data."""


class ResultsFolder:
    """The folder of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sweep_file = path / "sweep.yaml"
        self.journal = path / "study.journal"
        self.final_journal = path / "final.journal"
        self.documents = path / FOLDER  # what the base has written about documents, one folder each
        self.searched_documents = path / SEARCHED
        self._config_file, self._results_file = path / "sweep.json", path / "results.json"
        self._digests_file = path / "digests.json"

    def trial(self, arm: str, number: int) -> Path:
        """The folder of a trial of the search."""
        return self.path / "trials" / arm / str(number)

    def final_run(self, arm: str, number: int, replicate: int, document: str | None = None) -> Path:
        """The folder of a run in the final stage: the configuration of trial `number` with the seeds of `replicate`."""
        return self.path / final_name(arm, number, replicate, document)

    def untrained(self, arm: str, document: str | None = None) -> Path:
        """The folder of an arm that nobody trains; `document` is the one that it is about, where there are several."""
        return self.path / "final" / (arm if document is None else f"{arm}@{document}")

    def trial_results(self, arm: str) -> list[dict[str, Any]]:
        """What came of each trial of an arm's search that has ended."""
        folders = map(TrialFolder, self.path.glob(f"trials/{arm}/*"))
        return [result for folder in folders if (result := folder.result()) is not None]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create and lock the folder; `UserError` names the driver that has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(f"{self.path}: another driver runs this sweep: {file.read().strip()}") from None
            except OSError as error:
                raise UserError(
                    f"{self.path}: its file system cannot lock files ({error.strerror}), so two drivers could write "
                    "there; start the sweep in a folder on one that can"
                ) from None
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
            file.flush()
            yield

    def has_begun(self) -> bool:
        """Whether a study was written down; a driver that cannot load the base leaves an empty journal."""
        return any(path.is_file() and path.stat().st_size for path in (self.journal, self.final_journal))

    def store_config(self, config: SweepConfig, file: Path | None) -> SweepConfig:
        """Write the configuration, and a copy of its sweep file or else a file that says the same.

        Returns the configuration that is written: what it leaves to `auto` is as the sweep has begun. Raises
        `UserError` where the folder holds a sweep that differs in more than its budget, its tracking or its final
        stage.
        """
        begun = self._begun()
        stored = with_rules(config, begun)
        if begun is not None:
            self._check_identity(begun, stored, file)
        write_whole(self._config_file, json.dumps(dump(stored), indent=1) + "\n")
        if file is None:
            write_whole(self.sweep_file, as_yaml(config))
        elif file.resolve() != self.sweep_file.resolve():
            write_whole(self.sweep_file, file.read_text(encoding="utf-8"))
        return stored

    def keep_digests(self, digests: Mapping[str, str]) -> None:
        """Write down what the sweep begins with: a digest for each part of it, by the key of a sweep file.

        Raises `UserError` where it has begun with another content under the same name.
        """
        before = self._digests()
        changed = [key for key, digest in digests.items() if before.get(key, digest) != digest]
        if changed:
            problem = f"{' and '.join(changed)} had another content when this sweep began"
            raise UserError(f"{self.path}: {problem}; undo the change, or give this sweep another name")
        write_whole(self._digests_file, json.dumps({**digests, **before}) + "\n")

    def begun_with(self, key: str) -> str | None:
        """What the sweep began with; None where it has not begun, or by a version that kept none."""
        return self._digests().get(key)

    def stored(self) -> Stored | None:
        """What `results.json` holds; None where there is none. A file that cannot be read is put aside."""
        if not self._results_file.is_file():
            return None
        try:
            return load_results(self.path)
        except UserError as error:
            logger.warning("%s; it is kept as %s", error, self._put_aside().name)
            return None

    def final_results(self) -> Results | None:
        """The results of a final stage; None where there are none."""
        stored = self.stored()
        return stored if stored is not None and is_finished(stored) else None

    def store(self, results: Mapping[str, Any]) -> None:
        """Write `results.json`."""
        write_whole(self._results_file, json.dumps(results, indent=1, allow_nan=False) + "\n")

    def publish(self, results: Results, every: Sequence[ExampleOutputs]) -> list[Path]:
        """Write the results in every form, and the outputs on every source; the files.

        Older results of other winners stay beside the new ones.
        """
        older = self.final_results()
        if older is not None and older["arms"] != json.loads(json.dumps(results["arms"])):  # as the file has them
            self._put_aside()
        self.store(results)
        write_whole(self.path / "results.md", render_markdown(results))
        write_whole(self.path / "results.csv", csv_text(csv_rows(results)))
        write_whole(self.path / "trials.csv", csv_text(trial_rows(results["search"])))
        write_outputs(self.path / "outputs.csv", every, results["metric"])
        page = write_page(results, self.path)
        names = ("results.json", "results.md", "results.csv", "trials.csv", "outputs.csv")
        return [*(self.path / name for name in names), *page]

    def _digests(self) -> dict[str, str]:
        """What `keep_digests` has written; nothing where the sweep has not begun."""
        file = self._digests_file
        digests: dict[str, str] = json.loads(file.read_text("utf-8")) if self.has_begun() and file.is_file() else {}
        return digests

    def _begun(self) -> SweepConfig | None:
        """The configuration of the sweep in this folder; None where it has not begun."""
        return stored_config(self.path) if self._config_file.is_file() and self.has_begun() else None

    def _check_identity(self, begun: SweepConfig, config: SweepConfig, file: Path | None) -> None:
        changed = differences(identity(begun), identity(config))
        if changed:
            raise UserError(
                f"{file or config.name}: {self.path} holds a sweep with other settings; "
                "give this one another name, or undo:",
                *(f"  {line}" for line in changed),
            )

    def _put_aside(self) -> Path:
        """Rename `results.json` to `results.N.json`, with the next free number."""
        numbers = [path.suffixes[0][1:] for path in self.path.glob("results.*.json")]
        number = 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)
        return self._results_file.rename(self.path / f"results.{number}.json")
