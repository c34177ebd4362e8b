"""Where in a fine-tuned GPT-2 does a fact live, and how far can activation patching be trusted to say so?"""
