"""Kernels in SPIR-V through one device's compiler, and what that says of them (VK_KHR_pipeline_executable_properties).

    python compile.py amd|intel|nvidia FOLDER [TEXT]    FOLDER/spirv*/*.spv, as tests/shaders.rs writes them; TEXT: machine's code goes there

`compile` beside this file calls it, with the device's driver. Each kernel as the engine's pipelines have it: buffers bounded by the
device, its layout read from its own SPIR-V. A driver that crashes takes a process of its own with it, and the kernel counts as failed.

The defaults are compiled a second time, with each product and sum marked as one that must not be contracted or taken in another order.
Nothing is left to compilers where the arithmetic that comes of it is the same: instructions are counted by name.
"""
import collections
import json
import os
import pathlib
import re
import struct
import sys
import time

import vulkan as vk
from vulkan import ffi

# What each compiler calls registers, words kept in memory and instructions; how many of the words the worst default may have. Intel's
# worst are layers of 16 channels, whose workgroups stage three texels of pixels for each invocation, outside of the inner loop.
SAYS = {
    "amd": ("VGPRs", "Spilled VGPRs", "Instructions", 0),
    "intel": ("Max live registers", "Spill Count", "Instruction Count", 40),
    "nvidia": ("Number of GPRs", "Spills to memory", "Instruction count", 0),
}
# Kernels for software adapters, which hardware gets only where it is asked to by name: Mesa 25.0 crashes on one in twenty.
EXCUSED = {"intel": "_broadcast"}
DEFAULTS = {"amd": "spirv-default-256", "intel": "spirv-default-128", "nvidia": "spirv-default-256"}
# Where a compiler's arithmetic may be another, and why.
INEXACT = {
    "cross_entropy_forward": "a logarithm is the device's own, and a product",
    "square_step": "of images of one channel a product with one falls away",
}
STORAGE_BUFFER, UNIFORM_BUFFER = vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, vk.VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER
STORAGE_IMAGE, SAMPLED_IMAGE = vk.VK_DESCRIPTOR_TYPE_STORAGE_IMAGE, vk.VK_DESCRIPTOR_TYPE_SAMPLED_IMAGE


def interface(code):
    """Entry point, and (set, binding, kind) of each resource."""
    words = struct.unpack(f"<{len(code) // 4}I", code)
    entry, sets, bindings, types, storage, found = None, {}, {}, {}, set(), []
    at = 5
    while at < len(words):
        size, op = words[at] >> 16, words[at] & 0xFFFF
        a = words[at + 1 : at + size]
        if op == 15:  # OpEntryPoint
            entry = struct.pack(f"<{size - 3}I", *a[2:]).split(b"\0")[0].decode()
        elif op == 71 and a[1] == 34:  # OpDecorate DescriptorSet
            sets[a[0]] = a[2]
        elif op == 71 and a[1] == 33:  # Binding
            bindings[a[0]] = a[2]
        elif op == 71 and a[1] == 3:  # BufferBlock: a storage buffer before SPIR-V 1.3
            storage.add(a[0])
        elif op == 25:  # OpTypeImage; its operand "sampled" is 2 for storage images
            types[a[0]] = STORAGE_IMAGE if a[6] == 2 else SAMPLED_IMAGE
        elif op == 32:  # OpTypePointer
            types[a[0]] = (a[1], a[2])
        elif op == 59 and a[1] in bindings:  # OpVariable
            space, inner = types[a[0]]
            buffer = STORAGE_BUFFER if space == 12 or inner in storage else UNIFORM_BUFFER
            found.append((sets.get(a[1], 0), bindings[a[1]], types.get(inner, buffer)))
        at += size
    return entry, found


def exact(code):
    """The same module, its products and sums marked NoContraction."""
    words = list(struct.unpack(f"<{len(code) // 4}I", code))
    results, end, at = [], None, 5
    while at < len(words):
        size, op = words[at] >> 16, words[at] & 0xFFFF
        if op in (71, 72):  # OpDecorate, OpMemberDecorate
            end = at + size
        elif op in (127, 129, 131, 133, 136, 142, 148):  # negation, sum, difference, product, quotient, of vectors and numbers, dot
            results.append(words[at + 2])
        at += size
    words[end:end] = [word for result in results for word in (3 << 16 | 71, result, 42)]
    return struct.pack(f"<{len(words)}I", *words)


def arithmetic(texts):
    """How often each instruction that multiplies or adds is in a machine's code, whatever its operands and place."""
    (code,) = [text.decode(errors="replace") for name, text in texts if "ssembly" in name]
    count = collections.Counter()
    for line in code.splitlines():
        for part in re.split(r";|//|\{", line)[0].split("::"):  # two at a time on AMD's
            for name in re.findall(r"(?<![\w.])[a-z][a-z_0-9]*", part.replace("v_dual_", "v_")):
                name = re.sub(r"_e(32|64)$", "", name)
                if re.search(r"fma|mad|mac|mul|add|sub", name):
                    count[name] += 1
    return count


def open_device(with_matrices):
    app = vk.VkApplicationInfo(apiVersion=vk.VK_MAKE_VERSION(1, 3, 0))
    instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=app), None)
    physical = vk.vkEnumeratePhysicalDevices(instance)[0]
    there = {e.extensionName for e in vk.vkEnumerateDeviceExtensionProperties(physical, None)}
    extensions = ["VK_KHR_pipeline_executable_properties", "VK_EXT_robustness2"]
    chain = vk.VkPhysicalDeviceVulkan13Features(subgroupSizeControl=1, computeFullSubgroups=1, maintenance4=1)
    chain = vk.VkPhysicalDeviceVulkan12Features(pNext=chain, shaderFloat16=1, vulkanMemoryModel=1, vulkanMemoryModelDeviceScope=1)
    chain = vk.VkPhysicalDeviceVulkan11Features(pNext=chain, storageBuffer16BitAccess=1, uniformAndStorageBuffer16BitAccess=1)
    chain = vk.VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR(pNext=chain, pipelineExecutableInfo=1)
    chain = vk.VkPhysicalDeviceRobustness2FeaturesEXT(pNext=chain, robustBufferAccess2=1)
    if with_matrices and "VK_KHR_cooperative_matrix" in there:
        extensions.append("VK_KHR_cooperative_matrix")
        chain = vk.VkPhysicalDeviceCooperativeMatrixFeaturesKHR(pNext=chain, cooperativeMatrix=1)
    features = vk.VkPhysicalDeviceFeatures(robustBufferAccess=1, shaderInt64=1, shaderStorageImageExtendedFormats=1)
    queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=0, pQueuePriorities=[1.0])
    info = vk.VkDeviceCreateInfo(
        pNext=chain, pQueueCreateInfos=[queue], ppEnabledExtensionNames=extensions, pEnabledFeatures=features
    )
    return vk.vkCreateDevice(physical, info, None), vk.vkGetPhysicalDeviceProperties(physical).deviceName.strip()


def machine_code(device, executable):
    """Name and text of each representation that the driver shows."""
    ask = ffi.cast("PFN_vkGetPipelineExecutableInternalRepresentationsKHR",
                   vk.lib.vkGetDeviceProcAddr(device, b"vkGetPipelineExecutableInternalRepresentationsKHR"))
    number = ffi.new("uint32_t*")
    ask(device, ffi.addressof(executable), number, ffi.NULL)
    shown = ffi.new("VkPipelineExecutableInternalRepresentationKHR[]", number[0])
    for one in shown:
        one.sType = vk.VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INTERNAL_REPRESENTATION_KHR
    ask(device, ffi.addressof(executable), number, shown)
    texts = [ffi.new("char[]", one.dataSize + 1) for one in shown]
    for one, text in zip(shown, texts):
        one.pData = text
    ask(device, ffi.addressof(executable), number, shown)
    return [(ffi.string(one.name).decode(), ffi.string(text)) for one, text in zip(shown, texts)]


def compile_one(device, file, text, mark):
    code = file.read_bytes()
    said, texts = compile_code(device, code, text or mark)
    if text:
        for name, shown in texts:
            (text / f"{file.stem}.{name.replace(' ', '_').replace('/', '_')}.txt").write_bytes(shown)
    if mark:
        said["exact"] = arithmetic(texts) == arithmetic(compile_code(device, exact(code), True)[1])
    return said


def compile_code(device, code, with_text):
    entry, resources = interface(code)
    stages = vk.VK_SHADER_STAGE_COMPUTE_BIT
    sets = [[] for _ in range(1 + max((s for s, _, _ in resources), default=0))]
    for s, binding, kind in resources:
        sets[s].append(vk.VkDescriptorSetLayoutBinding(binding=binding, descriptorType=kind, descriptorCount=1, stageFlags=stages))
    layouts = [vk.vkCreateDescriptorSetLayout(device, vk.VkDescriptorSetLayoutCreateInfo(pBindings=b), None) for b in sets]
    layout = vk.vkCreatePipelineLayout(device, vk.VkPipelineLayoutCreateInfo(pSetLayouts=layouts), None)
    module = vk.vkCreateShaderModule(device, vk.VkShaderModuleCreateInfo(codeSize=len(code), pCode=code), None)
    flags = vk.VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR
    if with_text:
        flags |= vk.VK_PIPELINE_CREATE_CAPTURE_INTERNAL_REPRESENTATIONS_BIT_KHR
    stage = vk.VkPipelineShaderStageCreateInfo(stage=stages, module=module, pName=entry)
    info = vk.VkComputePipelineCreateInfo(flags=flags, stage=stage, layout=layout, basePipelineIndex=-1)
    start = time.process_time()
    pipeline = vk.vkCreateComputePipelines(device, None, 1, [info], None)[0]
    said, texts = {"seconds": time.process_time() - start}, []
    executables = vk.vkGetDeviceProcAddr(device, "vkGetPipelineExecutablePropertiesKHR")
    statistics = vk.vkGetDeviceProcAddr(device, "vkGetPipelineExecutableStatisticsKHR")
    for i, _ in enumerate(executables(device, vk.VkPipelineInfoKHR(pipeline=pipeline))):
        executable = vk.VkPipelineExecutableInfoKHR(pipeline=pipeline, executableIndex=i)
        for one in statistics(device, executable):
            name = one.name if isinstance(one.name, str) else ffi.string(one.name).decode()
            # Of several widths of subgroups the last is the widest.
            said[name] = [one.value.b32, one.value.i64, one.value.u64, one.value.f64][one.format]
        if with_text:
            texts += machine_code(device, executable)
    vk.vkDestroyPipeline(device, pipeline, None)
    return said, texts


def in_a_process(files, text, part):
    """What is said of each file, or why nothing is; files that were not come to are missing."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with os.fdopen(write, "w") as out:
            device, name = open_device(part == "matrices")
            print(json.dumps(name), file=out, flush=True)
            for file in files:
                try:
                    said = compile_one(device, file, text, part == "defaults")
                except vk.VkError as error:
                    said = {"error": type(error).__name__}
                print(json.dumps([file.name, said]), file=out, flush=True)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as lines:
        name, *rest = [json.loads(line) for line in lines] or [None]
    os.waitpid(child, 0)
    return name, dict(rest)


def compile_all(files, text, part):
    name, said = None, {}
    left = list(files)
    while left:
        device, some = in_a_process(left[:200], text, part)
        if device is None:
            sys.exit("the device does not open")
        name = device
        said |= some
        come_to = [file for file in left[:200] if file.name in some]
        if len(come_to) < len(left[:200]):
            crashed = left[len(come_to)]
            said[crashed.name] = {"error": "the driver crashed"}
            come_to.append(crashed)
        left = left[len(come_to) :]
    return name, said


def main():
    device, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    text = pathlib.Path(sys.argv[3], device) if len(sys.argv) > 3 else None
    if text:
        text.mkdir(parents=True, exist_ok=True)
    registers, spilled, instructions, most = SAYS[device]
    # Intel's driver has no matrices on the device that is played.
    parts = {"defaults": DEFAULTS[device], "all": "spirv"} | ({} if device == "intel" else {"matrices": "spirv-matrices"})
    right = True
    kept = {}
    for part, place in parts.items():
        files = sorted((folder / place).glob("*.spv"))
        if not files:
            sys.exit(f"nothing in {folder / place}: run the test `shaders`")
        name, said = compile_all(files, text, part)
        kept[part] = said
        errors = {file: one["error"] for file, one in said.items() if "error" in one}
        fine = {file: one for file, one in said.items() if "error" not in one}
        slowest = max(fine, key=lambda file: fine[file]["seconds"])
        largest = max(fine, key=lambda file: fine[file][registers])
        worst = max(fine, key=lambda file: fine[file][spilled])
        spilling = sum(one[spilled] > 0 for one in fine.values())
        if part == "defaults":
            print(f"{device}: {name}")
        print(
            f"  {part}: {len(fine)} kernels in {sum(one['seconds'] for one in fine.values()):.1f} CPU s, the slowest "
            f"{fine[slowest]['seconds']:.2f} s ({slowest}); registers up to {fine[largest][registers]} ({largest}); "
            f"{spilling} keep values in memory" + (f", up to {fine[worst][spilled]} ({worst})" if spilling else "")
        )
        excused = [file for file in errors if device in EXCUSED and EXCUSED[device] in file]
        if excused:
            print(f"  {part}: {len(excused)} of kernels for software adapters do not compile, which is known")
        for file in excused:
            del errors[file]
        for file, error in errors.items():
            print(f"  {part}: {file}: {error}")
        if part == "defaults":
            inexact = [file for file, one in fine.items() if not one["exact"]]
            print(f"  {part}: {len(fine) - len(inexact)} with the same arithmetic where nothing is left to the compiler")
            for file in inexact:
                why = [why for kernel, why in INEXACT.items() if kernel in file]
                print(f"  {part}: {file}: other arithmetic: {why[0] if why else 'why is not known'}")
                right &= bool(why)
        if part == "defaults" and fine[worst][spilled] > most:
            print(f"  {part}: {worst} keeps {fine[worst][spilled]} values in memory, {most} are allowed")
            right = False
        right &= not errors
    (folder / f"compiled-{device}.json").write_text(json.dumps(kept, indent=1))
    sys.exit(0 if right else 1)


main()
