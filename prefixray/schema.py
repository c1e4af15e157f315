"""Print the JSON schema of sweep files: editors check a file with it, complete its keys and show what each means.

prefixray schema > sweep.schema.json

In a file beside it, the first line tells the editor: # yaml-language-server: $schema=sweep.schema.json
"""

import json

from prefixray.config.files.json_schema import sweep_schema
from prefixray.system.command_line import Entry
from prefixray.system.exit_codes import leave


def schema() -> None:
    """Print the schema."""
    print(json.dumps(sweep_schema(), indent=1, ensure_ascii=False))


main = Entry(schema, "prefixray schema", __doc__)

if __name__ == "__main__":
    leave(main)
