"""Text in, token ids out: rows are read (readers), become groups (formats), are divided (splits),
turned into ids (chat) and examined before anything is trained on them (doctor)."""
