"""Which architectures of transformers work as text models, each as its library means it."""
