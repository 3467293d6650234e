"""Experiments run by their command lines within the test's own process, which has imported all that they need."""

import contextlib
import io
import logging
import os
import sys
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

from helpers import EXPERIMENTS

from slth.experiments import lab
from slth.experiments.lab import border, scripts


def launched(script, folder, *arguments):
    """What `python script ARGUMENTS` in the folder ends with: its exit status, and what it prints.

    script: the name of an experiment of this repository, or a path. Nothing that it sets is left behind.
    """
    path = Path(folder, script) if str(script).endswith(".py") else EXPERIMENTS / f"{script}.py"
    out, err, log = io.StringIO(), io.StringIO(), logging.getLogger()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(patch.object(sys, "argv", [str(path), *map(str, arguments)]))
        stack.enter_context(patch.object(sys, "path", [*sys.path]))
        if path.stem not in sys.modules:
            stack.callback(sys.modules.pop, path.stem, None)
        stack.enter_context(patch.dict(os.environ))
        stack.enter_context(patch.object(log, "handlers", [logging.StreamHandler(err)]))
        status = _status_of(path, err)
    return CompletedProcess([str(path), *arguments], status, out.getvalue(), err.getvalue())


def _status_of(path, err):
    ex = scripts.load.__wrapped__(path)
    try:
        lab.launch(ex)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=err)
            return 1
        return end.code or 0
    finally:
        for observer in ex.current_run.observers if ex.current_run else []:
            if isinstance(observer, border.SqlObserver):  # keeps its connection for as long as its process lives
                observer.session.close()
                observer.engine.dispose()
    return 0
