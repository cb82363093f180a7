reward.reward_manager.name=remote_reward
+reward.reward_kwargs.url=http://127.0.0.1:8000
