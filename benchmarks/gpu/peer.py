"""transformers' own continuous batching on the same job."""

import random
import time

from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel


def time_job(
    model: PreTrainedModel,
    config: ContinuousBatchingConfig,
    num_rows: int,
    prompt_tokens: int,
    output_tokens: int,
    limit_s: float,
) -> tuple[float, bool]:
    """Seconds that so many rows take, all there from the start; False: they were not done after `limit_s`.

    Its warm-up does not count.
    """
    rng = random.Random(7)
    vocabulary = int(model.config.vocab_size)
    prompts = [[rng.randrange(vocabulary) for _ in range(prompt_tokens)] for _ in range(num_rows)]
    generation = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=output_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    with model.continuous_batching_context_manager(  # type: ignore[operator]
        generation_config=generation, continuous_batching_config=config, timeout=5
    ) as manager:
        began_s = time.perf_counter()
        manager.add_requests(inputs=prompts, max_new_tokens=output_tokens)
        num_done = 0
        while num_done < num_rows and time.perf_counter() - began_s < limit_s:
            result = manager.get_result(timeout=1)
            if result is not None:
                if result.error is not None or len(result.generated_tokens) != output_tokens:
                    raise RuntimeError(f"{len(result.generated_tokens)} tokens: {result.error}")
                num_done += 1
            elif not manager.is_running():
                raise RuntimeError("its thread has ended")
        return time.perf_counter() - began_s, num_done == num_rows
