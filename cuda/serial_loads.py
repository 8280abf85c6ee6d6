"""Counts the serial global loads of a kernel in its machine code, in the format of cuobjdump.

A global load takes some hundred cycles. Loads that are issued before the first result is used form a batch; a thread
waits for a batch about as long as for a single load. A load is *serial* if a result of its batch is used before the
next load is issued, so that the load ends its batch. Hence n loads that are each used before the next load count as n,
and a batch of n loads counts as one (its last load).

The count follows the order of the code: past conditional branches, and along unconditional ones. It does not depend on
how often a load is executed.
"""

import re

LOADS = {"LDG", "LD"}
# Instructions without a register to write to; every register that they name is a source.
NO_DESTINATION = {"ST", "STG", "STS", "STL", "RED", "REDG", "LDGSTS", "BAR", "FCHK", "R2P", "WARPSYNC"}
# Number of registers of each source of a matrix product; the code names only the first register.
HMMA_WIDTHS = {2: 4, 3: 2, 4: 4}

INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
REGISTER = re.compile(r"(?<![A-Z\d_])R(\d+)((?:\.\w+)*)")


class Instruction:
    """One line of machine code: the registers that it reads and writes, and its branch target."""

    def __init__(self, address, predicate, opcode, operands):
        self.address = address
        self.name = opcode
        self.opcode, *self.modifiers = opcode.split(".")
        self.is_load = self.opcode in LOADS
        parts = [part.strip() for part in re.split(r",(?![^\[]*\])", operands)] if operands.strip() else []
        self.target = self.ends = None
        if self.opcode in ("BRA", "JMP") and not predicate and (match := re.fullmatch(r"`?\(?(0x[0-9a-f]+)\)?", parts[-1])):
            # With further operands, such as a uniform predicate, the branch may fall through.
            self.target = int(match[1], 16) if len(parts) == 1 else None
        elif self.opcode in ("EXIT", "RET", "BRX", "CALL", "JMX") and not predicate:
            self.ends = True
        at = self._destination(parts)
        self.destination = self._registers(parts[at], self._width()) if at is not None else set()
        self.sources = set()
        for i, part in enumerate(parts):
            if i != at:
                self.sources |= self._registers(part, self._source_width(i, len(parts)))

    def _destination(self, parts):
        if self.opcode in NO_DESTINATION or re.search(r"SETP2?$", self.opcode):
            return None
        for i, part in enumerate(parts):
            if re.fullmatch(r"R\d+", part):
                return i
            # Predicates that the instruction also writes, such as carries, stand before or behind the register.
            if not re.fullmatch(r"!?U?P(\d|T)", part):
                return None
        return None

    def _width(self):
        """Returns the number of registers of the operand that an instruction writes, or that a store reads."""
        if self.opcode == "CS2R" and "32" not in self.modifiers:
            return 2
        return 4 if "128" in self.modifiers else 2 if "64" in self.modifiers else 1

    def _source_width(self, i, count):
        if self.opcode in ("ST", "STG", "STS", "STL"):
            return self._width()
        if self.opcode == "HMMA":
            return HMMA_WIDTHS.get(i + 1, 1)
        return 2 if "WIDE" in self.modifiers and i == count - 1 else 1

    @staticmethod
    def _registers(operand, width):
        found = set()
        for number, suffixes in REGISTER.findall(operand):
            # An operand such as [R2.64] is an address in two registers.
            wide = 2 if ".64" in suffixes else 1 if "[" in operand else width
            found |= set(range(int(number), int(number) + wide))
        return found


def parse(line):
    """Returns the instruction in a line of `cuobjdump -sass`, or None."""
    match = INSTRUCTION.match(line)
    return Instruction(int(match[1], 16), match[2], match[3], match[4]) if match else None


def count(instructions):
    """Returns the number of batches of global loads that a kernel waits for."""
    index_of = {instruction.address: i for i, instruction in enumerate(instructions)}
    total, waiting = 0, set()
    for i, instruction in enumerate(instructions):
        # A use of one load waits for the others of its batch as well, which take as long.
        waiting = set() if instruction.sources & waiting else waiting - instruction.destination
        if instruction.is_load:
            waiting |= instruction.destination
            total += _is_serial(instructions, index_of, i, waiting)
        if instruction.ends or instruction.target is not None:
            waiting = set()
    return total


def _is_serial(instructions, index_of, load, waiting):
    """Returns whether a register in `waiting` (targets of loads) is used before another load is issued."""
    waiting, seen, i = set(waiting), {load}, load
    while waiting:
        instruction = instructions[i]
        if instruction.ends:
            return False
        i = index_of.get(instruction.target) if instruction.target is not None else i + 1
        if i is None or i >= len(instructions) or i in seen:
            return False
        seen.add(i)
        if instructions[i].sources & waiting:
            return True
        if instructions[i].is_load:
            return False
        waiting -= instructions[i].destination
    return False
