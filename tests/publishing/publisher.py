"""A process that publishes with the real client, as users do: its settings come from the environment, before any import.

Reads one job a line, ``{"call": name, ...}``, and answers each with one line. Pauses are noted and cut short.
"""

import json
import sys
import time
import traceback
from typing import Any

_PAUSES: list[float] = []
_SLEEP = time.sleep


def _short(seconds: float) -> None:
    _PAUSES.append(seconds)
    _SLEEP(min(seconds, 0.01))


def main() -> None:
    """Until stdin ends."""
    time.sleep = _short  # before the modules that take it
    from hf_shrink.publishing import hub
    from hf_shrink.publishing.push import push
    from hf_shrink.publishing.target import Target, preflight

    def ask(target: dict[str, Any], **options: Any) -> None:
        preflight(Target(**target), **options)

    calls = {"push": push, "preflight": ask}
    for line in sys.stdin:
        job = json.loads(line)
        hub.CALL_LIMIT = hub.COMMIT_LIMIT = job.pop("limit", 20.0)
        call = calls[job.pop("call")]
        _PAUSES.clear()
        try:
            result: Any = call(**job)
            answer = {"pushed": None if result is None else result.to_json()}
        except Exception as error:
            answer = {
                "error": type(error).__name__,
                "code": getattr(error, "code", None),
                "says": str(error),
                "traceback": traceback.format_exc(),
            }
        print(json.dumps({**answer, "pauses": _PAUSES}), flush=True)


if __name__ == "__main__":
    main()
