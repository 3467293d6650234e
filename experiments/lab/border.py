"""Sacred as the experiments use it: its settings, two fixes, and the names that the rest of lab imports.

Import Sacred only from here, where the warnings of its own imports are suppressed.
"""

import warnings

with warnings.catch_warnings():  # Sacred imports pkg_resources, and from Python 3.12 on deprecated parts of the library
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    import sacred
    from docopt import DocoptExit, docopt
    from sacred import stdout_capturing
    from sacred.arg_parser import get_config_updates
    from sacred.commands import help_for_command
    from sacred.config import ConfigDict
    from sacred.config.config_files import HANDLER_BY_EXT, load_config_file
    from sacred.config.config_summary import ConfigSummary
    from sacred.initialize import create_run
    from sacred.observers import FileStorageObserver, SqlObserver
    from sacred.run import Run
    from sacred.utils import apply_backspaces_and_linefeeds, print_filtered_stacktrace, set_by_dotted_path

__all__ = [
    "HANDLER_BY_EXT",
    "ConfigDict",
    "ConfigSummary",
    "DocoptExit",
    "FileStorageObserver",
    "Run",
    "SqlObserver",
    "apply_backspaces_and_linefeeds",
    "create_run",
    "docopt",
    "get_config_updates",
    "help_for_command",
    "load_config_file",
    "print_filtered_stacktrace",
    "sacred",
    "set_by_dotted_path",
    "stdout_capturing",
]


class _Tee(stdout_capturing.TeeingStreamProxy):  # type: ignore[misc]
    """A stream that writes to the original stream and to the run; after the run has ended, only to the stream.

    Objects created within a run may write after it, such as logging handlers, or colorama when the program ends.
    """

    def write(self, text: str) -> int:
        self.__wrapped__.write(text)
        if not self._self_out.closed:
            self._self_out.write(text)
        return len(text)

    def flush(self) -> None:
        self.__wrapped__.flush()


def _read_up(captured: stdout_capturing.CapturedStdout) -> bool:
    """Tell whether there is nothing left to read; a failed or interrupted run has closed the buffer before that."""
    return bool(captured.buffer.closed) and captured.final is None


stdout_capturing.TeeingStreamProxy = _Tee
stdout_capturing.CapturedStdout.closed = property(_read_up)
sacred.SETTINGS.CAPTURE_MODE = "sys"
sacred.SETTINGS.CONFIG.READ_ONLY_CONFIG = False  # its read-only lists are no lists for isinstance and json
sacred.SETTINGS.HOST_INFO.INCLUDE_GPU_INFO = False  # calls nvidia-smi, which takes a second and fails on shared devices
