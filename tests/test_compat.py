"""crnas_d2/compat.py: without detectron2, with 0.5 and main, compiled and not.

What `prepare()` does depends on what is installed, so each case runs in a Python process of its own.
Most of them see only the standard library, crnas_d2 and made-up packages (`python -I -S`): they take
milliseconds and give the same result in every environment.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

UNGUARDED = "import math\nfrom detectron2 import _C\n"
GUARDED = "try:\n    from detectron2 import _C\nexcept ImportError:\n    pass\n"


def bare_python(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `code` where nothing is installed but crnas_d2 and what lies in `folder`."""
    paths = [str(ROOT)] + ([str(folder)] if folder else [])
    code = f"import sys; sys.path += {paths!r}\n" + textwrap.dedent(code)
    return run([sys.executable, "-I", "-S", "-c", code])


def full_python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in the environment of the tests."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + textwrap.dedent(code)
    return run([sys.executable, "-W", "ignore", "-c", code])


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def fake_detectron2(folder: Path, deform_conv: str, numpy: str = "1.23.5", pil: str = "9.5") -> Path:
    # Importing the package itself fails: prepare() must find its way without that.
    write(folder / "detectron2" / "__init__.py", "raise RuntimeError('imported too early')\n")
    write(folder / "detectron2" / "layers" / "deform_conv.py", deform_conv)
    write(folder / "numpy" / "__init__.py", f"__version__ = {numpy!r}\n")
    write(folder / "PIL" / "__init__.py", f"__version__ = {pil!r}\n")
    return folder


# ---------------------------------------------------------------- detectron2 is not there


def test_without_detectron2_one_error_says_how_to_get_it():
    result = bare_python("from crnas_d2.compat import prepare; prepare()")
    assert result.returncode == 1
    message = result.stderr[result.stderr.index("ImportError") :]
    assert "not installed" in message
    assert "github.com/facebookresearch/detectron2" in message
    assert "make env" in message and (ROOT / "requirements" / "make_env.sh").is_file()
    assert result.stderr.count("Traceback") == 1


def test_a_clone_beside_the_script_is_not_an_installed_detectron2(tmp_path):
    (tmp_path / "detectron2" / "configs").mkdir(parents=True)
    result = bare_python("from crnas_d2.compat import prepare; prepare()", tmp_path)
    assert "ImportError" in result.stderr
    assert "detectron2, which is not installed (a clone of its repository" in result.stderr


def test_the_pure_core_works_without_it():
    names = ["architecture", "budget", "compat", "errors", "files", "seeding", "space"]
    names += [f"search.{path.stem}" for path in (ROOT / "crnas_d2" / "search").glob("[a-z]*.py")]
    assert len(names) >= 12
    result = bare_python("import crnas_d2, " + ", ".join(f"crnas_d2.{name}" for name in names))
    assert result.returncode == 0, result.stderr


# ---------------------------------------------------------------- stand-in or not


PRINT_WHAT_IS_THERE = """
    from crnas_d2.compat import prepare
    prepare()
    prepare()
    assert "detectron2" not in sys.modules and "torch" not in sys.modules
    print(sorted(name for name in sys.modules if name.startswith("detectron2")))
"""
STAND_INS = "['detectron2._C', 'detectron2.evaluation.fast_eval_api']"


def test_05_without_compiled_module_gets_stand_ins(tmp_path):
    result = bare_python(PRINT_WHAT_IS_THERE, fake_detectron2(tmp_path, UNGUARDED))
    assert result.stdout.strip() == STAND_INS, result.stderr


@pytest.mark.parametrize("name", ["_C" + EXTENSION_SUFFIXES[0], "_C.so", "_C.py", "_C/__init__.py"])
def test_a_real_compiled_module_is_never_hidden(tmp_path, name):
    write(fake_detectron2(tmp_path, UNGUARDED) / "detectron2" / name, "")
    result = bare_python(PRINT_WHAT_IS_THERE, tmp_path)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_compiled_module_that_a_custom_finder_knows_is_not_hidden(tmp_path):
    fake_detectron2(tmp_path, UNGUARDED)
    write(tmp_path / "elsewhere" / "built.py", "")
    result = bare_python(
        f"""
        import importlib.util
        class Redirect:  # as editable installs of compiled packages do
            def find_spec(self, name, path=None, target=None):
                if name == "detectron2._C":
                    place = {str(tmp_path / "elsewhere" / "built.py")!r}
                    return importlib.util.spec_from_file_location(name, place)
        sys.meta_path.append(Redirect())
        """
        + PRINT_WHAT_IS_THERE.replace("\n    ", "\n        "),
        tmp_path,
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_main_without_compiled_module_is_left_alone(tmp_path):
    # Main works without; a stand-in would make it believe that there is a compiled module.
    folder = fake_detectron2(tmp_path, GUARDED, numpy="2.2.6", pil="13.0.0")
    result = bare_python(PRINT_WHAT_IS_THERE, folder)
    assert result.stdout.strip() == "[]", result.stderr


def test_every_attribute_of_the_stand_in_refuses_when_called(tmp_path):
    folder = fake_detectron2(tmp_path, UNGUARDED)
    write(folder / "detectron2" / "__init__.py", "")
    result = bare_python(
        """
        import importlib.util
        from crnas_d2.compat import prepare
        prepare()
        from detectron2 import _C
        import detectron2._C as same
        assert same is _C is sys.modules["detectron2._C"]
        assert "stand-in of crnas_d2" in repr(_C)
        assert importlib.util.find_spec("detectron2._C").loader is None
        assert not hasattr(_C, "__path__") and not hasattr(_C, "__file__")
        for name in ("deform_conv_forward", "InstanceAnnotation", "_private"):
            op = getattr(_C, name)  # only looking is allowed
            try:
                op(1, two=2)
            except RuntimeError as error:
                assert f"detectron2._C.{name} was called" in str(error), error
                assert "install a compiled detectron2" in str(error), error
            else:
                raise AssertionError(name)
        """,
        folder,
    )
    assert result.returncode == 0, result.stderr


# ---------------------------------------------------------------- pins of 0.5


@pytest.mark.parametrize(
    ("versions", "pin"),
    [
        ({"numpy": "1.24.0"}, "numpy<1.24"),
        ({"numpy": "2.2.6"}, "numpy<1.24"),
        ({"pil": "10.0.0"}, "Pillow<10"),
    ],
)
def test_05_names_the_pin_that_is_not_met(tmp_path, versions, pin):
    folder = fake_detectron2(tmp_path, UNGUARDED, **versions)
    write(folder / "detectron2" / "_C.py", "")  # compiled or not makes no difference
    result = bare_python(PRINT_WHAT_IS_THERE, folder)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: detectron2 0.5") and f"pip install '{pin}'" in last


# ---------------------------------------------------------------- the installed detectron2


def test_the_installed_detectron2_says_how_it_was_built():
    """As default_setup() asks it. That it trains and evaluates: test_guest.py and test_configs.py."""
    pytest.importorskip("torch")
    result = full_python(
        """
        from crnas_d2.compat import prepare
        prepare()
        from detectron2.evaluation import COCOEvaluator
        from detectron2.utils.collect_env import collect_env_info
        print(collect_env_info())
        """
    )
    assert result.returncode == 0 and "detectron2" in result.stdout, result.stderr


def test_create_local_process_group_on_two_machines_of_two(tmp_path):
    pytest.importorskip("torch")
    result = full_python(
        f"""
        import multiprocessing
        from crnas_d2.compat import create_local_process_group, prepare
        prepare()
        import torch, torch.distributed as dist
        from detectron2.utils import comm

        def process(rank, answers):
            dist.init_process_group("gloo", init_method="file://{tmp_path}/meet",
                                    rank=rank, world_size=4)
            create_local_process_group(2)
            mine = torch.tensor([10 ** rank])
            dist.all_reduce(mine, group=comm._LOCAL_PROCESS_GROUP)
            answers.put((rank, comm.get_local_rank(), comm.get_local_size(), mine.item()))
            dist.barrier()

        fork = multiprocessing.get_context("fork")  # torch and detectron2 are imported once
        answers = fork.Queue()
        processes = [fork.Process(target=process, args=(r, answers)) for r in range(4)]
        for one in processes:
            one.start()
        for one in processes:
            one.join(120)
        assert [one.exitcode for one in processes] == [0] * 4
        print(sorted(answers.get() for _ in processes))
        """
    )
    expected = [(0, 0, 2, 11), (1, 1, 2, 11), (2, 0, 2, 1100), (3, 1, 2, 1100)]
    assert result.stdout.strip().splitlines()[-1:] == [str(expected)], result.stderr
