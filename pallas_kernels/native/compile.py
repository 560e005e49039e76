"""From a kernel's two functions (what takes units of a job, the handler that makes a job of a call) to LLVM's text."""

from types import ModuleType

import llvmlite.binding as llvm
from numba import cfunc, types

__all__ = ["compile_kernel"]


def compile_kernel(code: ModuleType, kind: str, version: tuple[int, int]) -> tuple[list[str], str]:
    """LLVM's text of the modules to link, and the name of the handler in them.

    Args:
        code: a `native_code` module, with KINDS, make_participate and make_handler.
        kind: of its KINDS.
        version: of XLA's foreign function interface.
    """
    signature = types.int64(types.int64)
    participate = code.make_participate(code.KINDS[kind]).py_func
    helper = cfunc(signature, error_model="numpy")(participate)
    llvm.add_symbol(helper.native_name, helper.address)  # Numba links the handler at once
    made = code.make_handler(helper.native_name, version, code.KINDS[kind])
    handler = cfunc(signature, error_model="numpy")(made.py_func)
    return [helper.inspect_llvm(), handler.inspect_llvm()], handler.native_name
