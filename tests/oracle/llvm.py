"""What LLVM makes of the questions that kernels ask of a number's bits, `python tests/oracle/llvm.py` (llvmlite).

`flushed`, `times` and `is_finite` (shaders/values.wgsl, loss.wgsl) ask for an exponent, `not_finite` (epilogue.wgsl) for bits above the
largest number. Metal's compiler and some drivers are LLVM with fast math. Here each question is written in LLVM's own language, of a
product, a sum and a loaded value, and goes through all its passes with everything that fast math may assume: bare, with a zero that no
compiler knows in one bit, and with one in every bit, as the shaders have it. Fails where the last is folded away, or contracted.
"""
import itertools
import sys

import llvmlite.binding as llvm

VALUES = {"product": "fmul FLAGS float %a, %b", "square": "fmul FLAGS float %a, %a", "sum": "fadd FLAGS float %a, %b", "loaded": "load float, ptr @given"}
ZEROS = {"bare": 0, "one bit": 1, "every bit": -1}
FLAGS = ["fast", "contract reassoc nsz arcp afn"]
BITS = """
  %v = VALUE
  %bare = bitcast float %v to i32
  %empty = icmp eq i32 %length, 0
  %hidden = select i1 %empty, i32 ZEROS, i32 0
  %bits = xor i32 %bare, %hidden
"""
EXPONENT = BITS + """
  %shifted = lshr i32 %bits, 23
  %exponent = and i32 %shifted, 255
"""
QUESTIONS = f"""
@given = external global float
define float @flushed(float %a, float %b, float %c, i32 %length) #0 {{ {EXPONENT}
  %is = icmp ne i32 %exponent, 0
  %flushed = select FLAGS i1 %is, float %v, float 0.0
  %sum = fadd FLAGS float %flushed, %c
  ret float %sum
}}
define i1 @infinite(float %a, float %b, i32 %length) #0 {{ {EXPONENT}
  %is = icmp eq i32 %exponent, 255
  ret i1 %is
}}
define i1 @not_finite(float %a, float %b, i32 %length) #0 {{ {BITS}
  %magnitude = and i32 %bits, 2147483647
  %is = icmp ugt i32 %magnitude, 2139095039
  ret i1 %is
}}
attributes #0 = {{ "denormal-fp-math"="preserve-sign,preserve-sign" "no-infs-fp-math"="true" "no-nans-fp-math"="true"
                  "no-signed-zeros-fp-math"="true" "unsafe-fp-math"="true" }}
"""


def asked(value, zeros, flags):
    """Which questions are still asked after all passes, and whether the product is contracted."""
    text = QUESTIONS.replace("VALUE", VALUES[value]).replace("ZEROS", str(ZEROS[zeros])).replace("FLAGS", flags)
    module = llvm.parse_assembly(text)
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(cpu="znver4", opt=3)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(3))
    builder.getModulePassManager().run(module, builder)
    bodies = {name: str(module.get_function(name)) for name in ["flushed", "infinite", "not_finite"]}
    is_asked = {name: "icmp" in body.replace("icmp eq i32 %length, 0", "") for name, body in bodies.items()}
    return is_asked, "vfm" in machine.emit_assembly(module)


def main():
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    print("LLVM", ".".join(map(str, llvm.llvm_version_info)))
    failed = False
    for zeros, value, flags in itertools.product(ZEROS, VALUES, FLAGS):
        is_asked, contracted = asked(value, zeros, flags)
        lost = [name for name, there in is_asked.items() if not there] + ["contracted"] * contracted
        print(f"{zeros:10} {value:8} {flags.split()[0]:9}", ", ".join(lost) or "as written")
        failed |= zeros == "every bit" and bool(lost)
    sys.exit(failed)


if __name__ == "__main__":
    main()
