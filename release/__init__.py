"""From a trained model to a repository on the Hugging Face Hub: its terms, its card, its folder, its ONNX file, the push."""
