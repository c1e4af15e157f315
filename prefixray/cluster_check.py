"""Check a cluster's file before anything is started, by Ray's own rules and by further ones.

prefixray cluster check cluster.yaml      # the same as python -m prefixray.cluster_check cluster.yaml
"""

from pathlib import Path
from typing import Annotated

import typer

from prefixray.system.command_line import Entry
from prefixray.system.exit_codes import leave


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="the cluster's YAML file, as for `ray up`")],
) -> None:
    """Print that the file is right. Raises `UserError` with every problem as `file:line: problem`."""
    from prefixray.cluster.remote.cluster_file import check_cluster

    print(check_cluster(file))


main = Entry(check, "prefixray cluster check", __doc__)

if __name__ == "__main__":
    leave(main)
