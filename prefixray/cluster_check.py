"""Check a cluster's file before anything is started, by Ray's own rules and by further ones.

python -m prefixray.cluster_check cluster.yaml      # the same as prefixray cluster check cluster.yaml
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefixray.errors import UserError
from prefixray.system.exit_codes import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Print every problem as `file:line: problem`; 2 where there is one."""
    parser = argparse.ArgumentParser(
        prog="prefixray cluster check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the cluster's YAML file, as for `ray up`")
    options = parser.parse_args(argv)
    from prefixray.cluster.remote.cluster_file import check_cluster

    try:
        print(check_cluster(options.file))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    leave(main)
