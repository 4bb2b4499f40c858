"""Model Runner V2 on a CPU: Triton's interpreter in the place of Triton's CPU backend.

vLLM's CPU build runs its second model runner only where Triton lists a backend called "cpu", which is
built from source and stands on no package index. On `PYTHONPATH` this file lists one, whose kernels
are then run by the interpreter (`TRITON_INTERPRET=1`): slow, and the real runner.
"""

from triton.backends import backends


class _InterpreterDriver:
    @staticmethod
    def is_active() -> bool:
        return True


class _InterpreterBackend:
    compiler = None
    driver = _InterpreterDriver


backends.setdefault("cpu", _InterpreterBackend)
