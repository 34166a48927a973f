#!/usr/bin/env bash
# OpenVINO 2026.4.1: loading its CPU plugin puts a signal stack of its own in the calling thread's place, and freeing the
# last object frees that stack's memory, in whichever thread this happens.
#
# Seen 2026-11-30 with openvino 2026.4.1, Python 3.11, Linux x86-64, two things in a row:
# - openvino.Core().get_property("CPU", …) in the main thread: sigaltstack() of that thread names other memory afterwards,
#   AT_MINSIGSTKSZ + 8192 bytes of it.
# - The Core let go in another thread: the main thread's signal stack is still the same, and no longer in the memory map.
# Python sets its signal handlers to run on that stack, so the next Ctrl-C ends such a process with SIGSEGV (seen in a
# test suite; not done here). Whoever saves the thread's sigaltstack before the plugin is loaded and sets it again afterwards
# is safe: OpenVINO leaves a stack alone that is not its own.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet openvino==2026.4.1
cat > "$folder/stack.py" << 'PYTHON'
import ctypes
import gc
import threading


class Stack(ctypes.Structure):
    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def stack():
    found = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.sp, found.size


def is_mapped(address):
    for line in open("/proc/self/maps"):
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            return True
    return False


import openvino

before = stack()
held = [openvino.Core()]
held[0].get_property("CPU", "FULL_DEVICE_NAME")
loaded = stack()
print("before", before, "loaded", loaded, "mapped", is_mapped(loaded[0]))
assert loaded != before and is_mapped(loaded[0]), "changed"
other = threading.Thread(target=lambda: (held.clear(), gc.collect()))
other.start()
other.join()
after = stack()
print("let go in another thread", after, "mapped", is_mapped(after[0]))
assert after == loaded and not is_mapped(after[0]), "changed"
print("as seen")
PYTHON
"$folder/venv/bin/python" "$folder/stack.py"
