"""Files beside the run file are data: Python never takes one of them for a module that it wants to import.

`python -m` searches the working folder first, so that a corpus with a `tokenizers.py`, a `statistics.py` or
a folder `datasets/` in it would be executed. Only `sys` and `os` are imported at the top: any other module
might be such a file.
"""

import os
import sys

SAFE = "PYTHONSAFEPATH"  # Python 3.11 and later: nothing is put in front of the search path
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def leave_out_working_folder() -> None:
    """Undoes what `python -m llmtrain…` has put in front of the search path; names what slipped through.

    accelerate puts the folder there once more, by PYTHONPATH. Python's own search for the module comes before
    us, and imports a handful of its library's files.
    """
    here = os.getcwd()
    sys.path[:] = [place for place in sys.path if place != here]
    if here == ROOT:  # a checkout that nobody has installed; what is installed goes first
        sys.path.append(here)
        return
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None) or ""
        package = file.endswith(os.sep + "__init__.py")
        if os.path.dirname(os.path.dirname(file) if package else file) == here:
            sys.stderr.write(
                f"warning: {file} has been executed: `python -m` takes files of the working folder for its "
                f"own library's; set {SAFE}=1 (Python 3.11), or start with the command llmtrain\n"
            )


def code_command(code: str) -> list[str]:
    """The command that runs lines of Python, as `python -c` does, but for the working folder."""
    return [sys.executable, "-c", f"import sys; sys.path[:] = [*filter(None, sys.path), {ROOT!r}]\n{code}"]


def module_command(module: str) -> list[str]:
    """The command that runs a module of llmtrain, as `python -m` does, but for the working folder."""
    return code_command(f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)")


def shadow_warnings(launcher: str) -> list[str]:
    """What `deepspeed`, which starts a helper of its own with `python -m`, may take for a module."""
    if launcher != "deepspeed" or os.environ.get(SAFE) or os.getcwd() == ROOT:
        return []
    from importlib.util import find_spec

    found = []
    for entry in sorted(os.listdir()):
        name, kind = os.path.splitext(entry)
        package = os.path.isfile(os.path.join(entry, "__init__.py"))
        if name.isidentifier() and (kind == ".py" or package) and find_spec(name) is not None:
            found.append(entry)
    if not found:
        return []
    return [
        f"{', '.join(found)} here: these are names of modules, so {launcher}'s own processes may execute "
        f"them; move them away, or set {SAFE}=1 (Python 3.11 and later)"
    ]


class SafeChildren:
    """While it is entered, processes that `multiprocessing` starts don't search the working folder."""

    def __enter__(self) -> None:
        from multiprocessing import util

        self.before, self.flags = os.environ.get(SAFE), getattr(util, _FLAGS)
        os.environ[SAFE] = "1"
        if sys.version_info < (3, 11):  # which knows nothing of the variable
            setattr(util, _FLAGS, lambda: [*self.flags(), "-I"])

    def __exit__(self, *_: object) -> None:
        from multiprocessing import util

        setattr(util, _FLAGS, self.flags)
        if self.before is None:
            del os.environ[SAFE]
        else:
            os.environ[SAFE] = self.before


_FLAGS = "_args_from_interpreter_flags"  # what a process that `multiprocessing` starts is given
