# README: ms-swift
import reward_client.swift  # noqa: F401  registers remote_reward

# README: end
