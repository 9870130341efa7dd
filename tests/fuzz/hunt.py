"""Coverage-guided fuzzing: python -m tests.fuzz.hunt [TARGET] [SECONDS | FILE] [libFuzzer options].

Without a target all are hunted in turn. What a hunt finds interesting is kept in build/fuzz/TARGET, where the
next one goes on; an input that crashes is written beside it, and naming that FILE runs it again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["protego_cli"]):
    from tests.fuzz.targets import Target, targets

CORPUS = Path("build/fuzz")
SECONDS = "60"


def main(arguments: list[str]) -> int:
    named = {target.name: target for target in targets()}
    if not arguments or arguments[0].isdigit():
        hunts = [[sys.executable, "-m", "tests.fuzz.hunt", name, *arguments] for name in named]
        return max(subprocess.call(hunt) for hunt in hunts)  # this very program
    name, *rest = arguments
    if name not in named:
        sys.exit(f"there is no target {name!r}; one of {', '.join(named)}")
    if rest and Path(rest[0]).is_file():
        named[name].run(Path(rest[0]).read_bytes())
        return 0
    seconds, options = (rest[0], rest[1:]) if rest and rest[0].isdigit() else (SECONDS, rest)
    hunt(named[name], seconds, options)
    return 0


def hunt(target: Target, seconds: str, options: list[str]) -> None:
    corpus = CORPUS / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    settings = [f"-max_total_time={seconds}", f"-artifact_prefix={CORPUS}/{target.name}-", "-max_len=2048"]
    atheris.Setup([sys.argv[0], *settings, *options, str(corpus)], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
