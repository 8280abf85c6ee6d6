"""CUDA tensors, on a GPU or on the stand-in for the driver, if the process finds one of them."""

import ctypes
import os
import pathlib
import subprocess
import sys
import unittest

SCRIPT = pathlib.Path(__file__).with_name("on_cuda.py")
# The stand-in's words and status at the end of a process that still has the modules of the kernels, which stay loaded.
STAND_IN_STATUS, STAND_IN_WORDS = 86, r"^stand-in: the process ended with \d+ modules$"


def devices():
    """Returns the number of CUDA devices."""
    try:
        driver, count = ctypes.CDLL("libcuda.so"), ctypes.c_int()
    except OSError:
        return 0
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


class Cuda(unittest.TestCase):
    def test_launches_on_the_callers_stream(self):
        if devices() == 0:
            if os.environ.get("FLEXDRAFT_REQUIRE_GPU") == "1":
                self.fail("there is no CUDA device, expected one")
            self.skipTest("there is no CUDA device")
        for streams in ("eager", "late"):
            with self.subTest(streams):
                environment = {**os.environ, "FLEXDRAFT_STAND_IN_STREAMS": streams}
                ran = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment)
                self.assertEqual(ran.stdout, "the same bits\n", ran.stderr)
                if ran.returncode == STAND_IN_STATUS:
                    self.assertRegex(ran.stderr, STAND_IN_WORDS)
                else:
                    self.assertEqual(ran.returncode, 0, ran.stderr)


if __name__ == "__main__":
    unittest.main()
