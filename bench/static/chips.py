"""What four GPUs can do, from their published tables.

Limits of a multiprocessor, its allocation units and instruction rates: CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability" and "Throughput of Native Arithmetic Instructions"; the rules that make
occupancy of them: cuda_occupancy.h of CUDA 13.0. Processors, clocks, memory and tensor rates: NVIDIA's A100 (80 GB),
H100 (SXM), Ada (AD102) and RTX Blackwell architecture papers; boost clocks, dense, sums in float32.
"""

from dataclasses import dataclass

# What mma.sync reaches of the H100's tensor rate, which only wgmma exhausts: a third party's measurement (Hazy
# Research, "GPUs Go Brrr", 2024), not the vendor's.
MMA_SYNC_OF_HOPPER = 0.63


@dataclass(frozen=True)
class Chip:
    name: str
    arch: str  # of the fastcnn build's code that runs on it
    processors: int
    clock: float  # GHz
    memory: float  # GB/s
    # Per processor and clock: results, and multiply-adds of tensor cores by operand.
    fp32: int
    fp64: int
    integer: int
    tensor: dict[str, float]
    # Of a processor.
    threads: int
    blocks: int
    shared: int  # bytes
    shared_of_block: int
    barriers: int
    special: int = 16
    registers: int = 65536

    @property
    def warps(self) -> int:
        return self.threads // 32


_KB = 1024
_F16, _TF32 = "16816", "1688.F32.TF32"  # as HMMA's modifiers name them
_HOPPER = {_F16: 2048 * MMA_SYNC_OF_HOPPER, _TF32: 1024 * MMA_SYNC_OF_HOPPER}
_CONSUMER = {_F16: 256.0, _TF32: 128.0}

CHIPS = (
    Chip("A100", "80", 108, 1.41, 2039, 64, 32, 64, {_F16: 1024.0, _TF32: 512.0}, 2048, 32, 164 * _KB, 163 * _KB, 64),
    Chip("RTX 4090", "80", 128, 2.52, 1008, 128, 2, 64, _CONSUMER, 1536, 24, 100 * _KB, 99 * _KB, 24),
    Chip("H100", "90a", 132, 1.83, 3350, 128, 64, 64, _HOPPER, 2048, 32, 228 * _KB, 227 * _KB, 64),
    Chip("RTX 5090", "120", 170, 2.41, 1792, 128, 2, 128, _CONSUMER, 1536, 24, 100 * _KB, 99 * _KB, 24),
)

_SHARED_RESERVED, _SHARED_UNIT, _REGISTER_UNIT = 1024, 128, 256  # a block; a block; a warp


@dataclass(frozen=True)
class Occupancy:
    blocks: int  # that a processor holds at once
    warps: int
    limit: str  # what keeps it from more: registers, shared memory, threads, blocks, barriers

    def share(self, chip: Chip) -> float:
        return self.warps / chip.warps


def occupancy(chip: Chip, threads: int, registers: int, shared: int, barriers: int = 0) -> Occupancy:
    """Of a kernel launched with blocks of `threads` threads and `shared` bytes, static and dynamic."""
    warps = -(-threads // 32)
    registers_of_warp = -(-registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    shared_of_block = -(-(shared + _SHARED_RESERVED) // _SHARED_UNIT) * _SHARED_UNIT
    # Registers belong to the processor's four quarters.
    by_registers = chip.registers // 4 // registers_of_warp * 4 // warps if registers else chip.blocks
    limits = {
        "threads": chip.warps // warps,
        "registers": by_registers,
        "shared memory": chip.shared // shared_of_block if shared <= chip.shared_of_block else 0,
        "blocks": chip.blocks,
    }
    if barriers:
        limits["barriers"] = chip.barriers // barriers
    limit = min(limits, key=limits.__getitem__)
    return Occupancy(limits[limit], limits[limit] * warps, limit)
