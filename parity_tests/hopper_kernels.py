"""Inductor's Hopper kernels on a machine without a GPU: emit them, compile them for sm_90a, run them on the CPU.

    emit(function, *tensors)     the Triton sources that Inductor would launch, and the library calls beside them
    compile_sm90a(source)        the same source through Triton and ptxas: spills, shared memory, matrix instructions
    interpret(steps)             numbers, from Triton's interpreter in a child process (float32 only)

Tensors are fake: full width costs nothing. A PyTorch without CUDA cannot trace `tensor[...]` or `index_select` of a
fake CUDA tensor, so the functions under test say `torch.ops.aten.index.Tensor`. What a kernel takes in time is for a
real GPU to say.
"""

import contextlib
import importlib
import importlib.util
import inspect
import itertools
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import torch
from torch import Tensor

SHARED_LIMIT = 232448  # bytes of shared memory that one block may have on Hopper
# Where the dev extra brings Triton: elsewhere the tests are skipped, here a missing Triton is an error.
HAS_WHEEL = sys.platform == "linux" and platform.machine() == "x86_64"
# What one launch of the interpreter covers: small enough that several blocks meet.
INTERPRETED = {"XBLOCK": 64, "YBLOCK": 64, "ZBLOCK": 1, "R0_BLOCK": 32}

GPU = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, total_memory=150 * 2**30, multi_processor_count=132, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, regs_per_multiprocessor=65536,
    shared_memory_per_block=49152, shared_memory_per_block_optin=SHARED_LIMIT,
    shared_memory_per_multiprocessor=233472, L2_cache_size=60 * 2**20, gcnArchName="", uuid="",
    clock_rate=1980000, memory_clock_rate=3201000, memory_bus_width=6144,
)  # fmt: skip


@dataclass(frozen=True)
class Emitted:
    """What one compiled function would launch."""

    source: str  # the whole generated module
    kernels: list[str]  # Triton sources, in the order of their launches
    library_calls: list[str]  # cuBLAS and the like
    buffers: list[tuple[tuple[int, ...], str]]  # shape and dtype of every tensor it allocates
    order: list[int]  # which argument of the function each input of the module is


@dataclass(frozen=True)
class Compiled:
    """One tuning configuration of a kernel as ptxas leaves it."""

    blocks: dict[str, int]
    num_warps: int
    shared_bytes: int
    spilled_bytes: int
    wgmma: int  # matrix instructions of Hopper's own kind
    wide_loads: int  # of 128 bits

    @property
    def fits(self) -> bool:
        return self.shared_bytes <= SHARED_LIMIT


@contextlib.contextmanager
def pretend_gpu() -> Iterator[None]:
    """Answer what Inductor asks about the device as Hopper would. `torch.cuda.is_available()` stays as it is."""
    import triton
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.fx_passes import misc_patterns
    from triton.backends.compiler import GPUTarget

    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0,
        get_device_interface=lambda: torch.cuda, get_active_torch_device=lambda: torch.device("cuda", 0),
    )  # fmt: skip

    def always(value: object) -> Callable:
        return lambda *_, **__: value

    interface = {
        "get_compute_capability": 90, "is_available": True, "current_device": 0, "is_triton_capable": True,
        "raise_if_triton_unavailable": None, "get_raw_stream": 0, "is_bf16_supported": True, "device_count": 1,
        "is_dtype_supported": True, "get_device_properties": GPU, "synchronize": None,
    }  # fmt: skip
    module = {
        "get_device_properties": GPU, "get_device_capability": (9, 0), "current_device": 0,
        "get_device_name": GPU.name, "synchronize": None,
    }  # fmt: skip
    worker = {"get_device_properties": GPU, "current_device": 0}
    classes = (CudaInterface, interface), (CudaInterface.Worker, worker)
    answers = [(owner, name, staticmethod(always(value))) for owner, table in classes for name, value in table.items()]
    answers += [(torch.cuda, name, always(value)) for name, value in module.items()]
    answers += [(type(triton.runtime.driver), "active", property(lambda self: driver)),
                (torch.version, "cuda", torch.version.cuda or "13.0")]  # fmt: skip
    if not torch.backends.cuda.is_built():
        patterns = misc_patterns._misc_patterns_init  # one of them is traced with `tensor[...]` on the device
        answers.append((misc_patterns, "_misc_patterns_init", lambda device=None: patterns(torch.device("cpu"))))
        flex = importlib.import_module("torch._higher_order_ops.flex_attention")  # `import` finds the operator
        permuted = flex._permute_strides

        def permuted_without_data(out: Tensor, strides: tuple[int, ...]) -> Tensor:
            with mock.patch.object(Tensor, "copy_", lambda self, other: self):
                return permuted(out, strides)

        answers.append((flex, "_permute_strides", permuted_without_data))
    with contextlib.ExitStack() as stack:
        for owner, name, value in answers:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        forget_triton()
        stack.callback(forget_triton)
        yield


def forget_triton() -> None:
    """PyTorch remembers whether Triton works; the answer differs inside `pretend_gpu` and outside."""
    for question in vars(importlib.import_module("torch.utils._triton")).values():
        if hasattr(question, "cache_clear"):
            question.cache_clear()


def emit(function: Callable, *tensors: Tensor, options: dict[str, object] | None = None) -> Emitted:
    """What Inductor makes of `function` for CUDA tensors like these (meta tensors will do; others pass as they are)."""
    import torch._inductor.config as inductor
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.graph import GraphLowering
    from torch._subclasses.fake_tensor import FakeTensorMode

    sources, order = [], []
    parameters = list(inspect.signature(function).parameters)

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        """Inductor, after a note of the order in which dynamo met the arguments."""
        met = [node.target for node in graph.graph.nodes if node.op == "placeholder"]
        order.extend(parameters.index(name.removeprefix("L_").removesuffix("_")) for name in met)
        return compile_fx(graph, inputs)

    def keep_source(graph: GraphLowering) -> SimpleNamespace:
        """In place of loading the generated module, whose kernels no device here could run."""
        sources.append(graph.codegen()[0].value)
        return SimpleNamespace(call=lambda args: [None] * len(graph.graph_outputs))

    settings = {
        "fx_graph_cache": False, "compile_threads": 1, "joint_graph_constant_folding": False,  # it runs on the device
        "assert_indirect_indexing": False, **(options or {}),
    }  # fmt: skip
    torch._dynamo.reset()
    with (
        pretend_gpu(), FakeTensorMode(), inductor.patch(settings), torch.no_grad(),
        mock.patch.object(GraphLowering, "compile_to_module", keep_source),
    ):  # fmt: skip
        fakes = [torch.empty(t.shape, dtype=t.dtype, device="cuda") if isinstance(t, Tensor) else t for t in tensors]
        torch.compile(function, dynamic=False, fullgraph=True, backend=backend)(*fakes)
    (source,) = sources
    body = source[source.index("def call(") :]
    by_name = dict(re.findall(r"(\w+) = async_compile\.triton\('\w+', '''(.*?)''', device_str", source, re.S))
    launched = [by_name[name] for name in re.findall(r"^\s+(\w+)\.run\(", body, re.M)]
    calls = re.findall(r"\b(extern_kernels\.\w+|(?<!\.)aten\.[\w.]+|torch\.ops\.[\w.]+)\(", body)
    made = re.findall(r"empty_strided_cuda\(\(([\d, ]*)\), \([\d, ]*\), torch\.(\w+)\)", body)
    buffers = [(tuple(int(size) for size in shape.split(",") if size.strip()), dtype) for shape, dtype in made]
    return Emitted(source, launched, calls, buffers, order)


def compile_sm90a(source: str, num_configs: int | None = None) -> list[Compiled]:
    """The first `num_configs` tuning configurations of a kernel, compiled as on a Hopper machine."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    with pretend_gpu():
        kernel = getattr(load_source(source.replace("triton_helpers.set_driver_to_gpu()", "")), kernel_name(source))
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    found = []
    for config in kernel.configs[:num_configs]:
        signature = dict(kernel.triton_meta["signature"]) | {name: "constexpr" for name in config.kwargs}
        constants = kernel.triton_meta.get("constants", {}) | config.kwargs
        constants = {name: value for name, value in constants.items() if name in kernel.fn.arg_names}
        binary = triton.compile(
            ASTSource(kernel.fn, signature, constexprs=constants, attrs=kernel.triton_meta["configs"][0]),
            target=GPUTarget("cuda", 90, 32), options={"num_warps": config.num_warps, "num_stages": config.num_stages},
        )  # fmt: skip
        ptx = binary.asm["ptx"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.ptx"
            path.write_text(ptx, encoding="utf-8")
            report = subprocess.run([ptxas, "-v", "--gpu-name=sm_90a", path, "-o", path.with_suffix(".cubin")],
                                    capture_output=True, encoding="utf-8", check=True).stderr  # fmt: skip
        spilled = re.search(r"(\d+) bytes spill stores", report)
        found.append(Compiled(
            config.kwargs, config.num_warps, binary.metadata.shared, int(spilled[1]), ptx.count("wgmma.mma_async"),
            len(re.findall(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64|cp\.async\.cg", ptx)),
        ))  # fmt: skip
    return found


def kernel_name(source: str) -> str:
    return re.search(r"def (triton_\w+)\(", source)[1]


def num_loads(source: str, pointer: str) -> int:
    """How many load instructions of the Triton source read this argument."""
    return len(re.findall(rf"tl\.load\({pointer} \+", source))


_folder = tempfile.TemporaryDirectory(prefix="hopper-kernels-")  # until the process ends
_numbers = itertools.count()


def load_source(text: str) -> ModuleType:
    """Import a generated source; Triton reads it back from its file."""
    name = f"generated_{next(_numbers)}"
    path = Path(_folder.name) / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def interpret(*cases: tuple[Emitted, list[Tensor]]) -> list[list[Tensor]]:
    """Run generated modules on CPU tensors, every kernel through Triton's interpreter; one list of outputs for each.

    In a child process: Triton asks for TRITON_INTERPRET when it is imported. Outputs start as NaN or as nonsense.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.pt"
        task = [(emitted.source, [arguments[i] for i in emitted.order]) for emitted, arguments in cases]
        torch.save(task, path)
        child = subprocess.run(
            [sys.executable, "-m", "parity_tests.hopper_kernels", path], env=os.environ | {"TRITON_INTERPRET": "1"},
            cwd=Path(__file__).parents[1], capture_output=True, encoding="utf-8",
        )  # fmt: skip
        assert child.returncode == 0, child.stderr[-6000:]
        return torch.load(path)


class InterpretedKernel:
    """Stands where the generated module expects a kernel that can be launched."""

    HEAD = """
import triton
import triton.language as tl
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_helpers import math as tl_math
"""

    def __init__(self, name: str, source: str, **_: object):
        text = source[source.index("@triton.jit") :].replace("libdevice.", "tl.")  # NVIDIA's library needs a GPU
        # A plain assignment becomes an array of one number, which NumPy from 2.4 on refuses as the end of a loop.
        text = re.sub(r"^( *\w+numel) = (\d+)$", r"\1: tl.constexpr = \2", text, flags=re.M)
        self.function = getattr(load_source(self.HEAD + text), kernel_name(source))
        self.grid_axes = "zyx" if "'grid_type': 'BatchMatmulGrid3D'" in source else "xyz"

    def run(self, *args: object, stream: int) -> None:
        blocks = {name: size for name, size in INTERPRETED.items() if name in self.function.arg_names}
        sizes = dict(zip(self.function.arg_names, args, strict=False))
        grid = [-(-sizes[f"{axis}numel"] // blocks[f"{axis.upper()}BLOCK"]) if f"{axis.upper()}BLOCK" in blocks else 1
                for axis in self.grid_axes]  # fmt: skip
        self.function[tuple(grid)](*args, **blocks)


def poisoned(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    nonsense = float("nan") if dtype.is_floating_point else 77
    return torch.empty_strided(shape, stride, dtype=dtype).fill_(nonsense)


def interpret_module(source: str, inputs: list[Tensor]) -> list[Tensor]:
    """Execute the `call` of a generated module with CPU tensors in the place of the device's."""
    body = source[source.index("class Runner") : source.index("def get_args(")]
    kernels = re.findall(r"(\w+) = async_compile\.triton\('(\w+)', '''(.*?)''', device_str", source, re.S)
    names = {
        "torch": torch, "aten": torch.ops.aten, "empty_strided_cuda": poisoned, "get_raw_stream": lambda index: 0,
        "assert_size_stride": lambda *_: None, "assert_alignment": lambda *_: None,
        "copy_misaligned": lambda tensor: tensor,  # PyTorch 2.12's name of the next one
        "copy_if_misaligned": lambda tensor: tensor,
        "reinterpret_tensor": torch._C._dynamo.guards._reinterpret_tensor,
        **{name: InterpretedKernel(inner, text) for name, inner, text in kernels},
    }  # fmt: skip
    with (
        mock.patch.object(torch.cuda, "_DeviceGuard", lambda index: contextlib.nullcontext()),
        mock.patch.object(torch.cuda, "set_device", lambda index: None),
    ):
        exec(body, names)
        return list(names["call"](list(inputs)))


def interpret_task(path: Path) -> None:
    """What the child process does: replace the task by its results."""
    torch.save([interpret_module(source, inputs) for source, inputs in torch.load(path)], path)


if __name__ == "__main__":
    interpret_task(Path(sys.argv[1]))
