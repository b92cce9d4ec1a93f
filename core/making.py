"""Networks are made one at a time.

Diffusers, transformers and accelerate put methods of their own into `torch.nn.Module` meanwhile, for the whole process. Of two that make
networks at once, the first to end puts the other's methods back for good, and every later network comes without weights.
"""

import threading

ONE_AT_A_TIME = threading.RLock()
