from .comparison import ENOUGH_TOKENS as ENOUGH_TOKENS
from .comparison import compare as compare
from .comparison import fits_memory as fits_memory
from .comparison import logits_of as logits_of
from .comparison import must_stream as must_stream
from .comparison import probe_ids as probe_ids
from .comparison import verify as verify
