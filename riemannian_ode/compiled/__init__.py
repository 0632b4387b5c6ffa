"""Steps of explicit schemes compiled into one kernel, for long runs and large ensembles.

The Python code of a step is traced. With few coordinates, on the CPU, the trace becomes a C++ loop over steps and
members (:mod:`riemannian_ode.compiled.native`); on the GPU, or with many coordinates, several steps in a row become one
kernel of torch's Inductor (:mod:`riemannian_ode.compiled.inductor`).
"""

from riemannian_ode.compiled.steps import CompiledSteps, CompileError, compiled_states

__all__ = ["CompileError", "CompiledSteps", "compiled_states"]
