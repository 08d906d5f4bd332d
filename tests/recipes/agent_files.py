"""Writes trajectories in the format of mini-swe-agent 2.4; `test_run_agent.py` compares them with its own files."""

import json

SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
ACTION_REGEX = r"```mswea_bash_command\s*\n(.*?)\n```"

MODELS = {"tool_calls": "litellm_model.LitellmModel", "text": "litellm_textbased_model.LitellmTextbasedModel"}


def reply(words, *commands, thought=None):
    """A step: what the model says, and its commands with what they print; None where no observation was written."""
    return {"words": words, "commands": commands, "thought": thought}


def reply_in_wrong_format():
    """A step that is told of its format."""
    return


def trajectory(style, steps, end="Submitted", submission=""):
    """A file's content.

    Args:
        style: "tool_calls" or "text".
        steps: see `reply`.
        end: the exit status; None where the agent was killed.
    """
    messages = [{"role": "system", "content": "You have bash."}, {"role": "user", "content": "Repair it."}]
    for number, step in enumerate(steps):
        messages += _WRITERS[style](number, step) if step else [_wrong_format(style)]
    if end is not None:
        extra = {"exit_status": end, "submission": submission}
        messages.append({"role": "exit", "content": submission, "extra": extra})
    model = {
        "model_name": "openai/scripted",
        "model_kwargs": {"api_base": "http://127.0.0.1:1/v1", "timeout": 300.0, "max_retries": 0},
        "litellm_model_registry": None,
        "set_cache_control": None,
        "cost_tracking": "ignore_errors",
        "format_error_template": "{{ error }}",
        "observation_template": "{{ output.output }}",
        "multimodal_regex": "",
        **({"action_regex": ACTION_REGEX} if style == "text" else {}),
    }
    agent = {
        "system_template": "You have bash.",
        "instance_template": "{{ task }}",
        "step_limit": 100,
        "cost_limit": 0.0,
        "wall_time_limit_seconds": 0,
        "max_consecutive_format_errors": 3,
        "output_path": None,
    }
    config = {
        "agent": agent,
        "agent_type": "minisweagent.agents.default.DefaultAgent",
        "model": model,
        "model_type": f"minisweagent.models.{MODELS[style]}",
        "environment": {},
        "environment_type": "hf_toolssm.tools.bash.Shell",
    }
    info = {
        "model_stats": {"instance_cost": 0.0, "api_calls": len(steps)},
        "config": config,
        "mini_version": "2.4.6",
        "exit_status": end or "",
        "submission": submission,
    }
    return {"info": info, "messages": messages, "trajectory_format": "mini-swe-agent-1.1"}


def _tool_calls(number, step):
    ids = [f"call_{number}_{at}" for at in range(len(step["commands"]))]
    functions = [{"arguments": json.dumps({"command": command}), "name": "bash"} for command, _ in step["commands"]]
    calls = [{"function": each, "id": name, "type": "function"} for each, name in zip(functions, ids)]
    actions = [{"command": command, "tool_call_id": name} for (command, _), name in zip(step["commands"], ids)]
    yield _assistant(step["words"], step["thought"], calls or None, actions)
    for (_, output), name in zip(step["commands"], ids):
        if output is not None:
            yield {"content": output, "extra": _observed(output), "tool_call_id": name, "role": "tool"}


def _text(number, step):
    words = [step["words"], *(f"```mswea_bash_command\n{command}\n```" for command, _ in step["commands"])]
    content = "\n\n".join(filter(None, words))
    yield _assistant(content, step["thought"], None, [{"command": command} for command, _ in step["commands"]])
    for _, output in step["commands"]:
        if output is not None:
            yield {"role": "user", "content": output, "extra": _observed(output)}


_WRITERS = {"tool_calls": _tool_calls, "text": _text}


def _assistant(content, thought, calls, actions):
    said = {"content": content, "role": "assistant", "tool_calls": calls, "function_call": None}
    if thought:
        said["reasoning_content"] = thought
    extra = {"actions": actions, "response": _response(dict(said)), "cost": 0.0, "timestamp": 1795732570.0}
    return {**said, "provider_specific_fields": None, "extra": extra}


def _response(message):
    choice = {"finish_reason": "stop", "index": 0, "message": message, "provider_specific_fields": {}}
    details = {"completion_tokens_details": None, "prompt_tokens_details": None}
    usage = {"completion_tokens": 3, "prompt_tokens": 5, "total_tokens": 8, **details}
    response = {"id": "x", "created": 1, "model": "scripted", "object": "chat.completion", "choices": [choice]}
    return {**response, "usage": usage}


def _observed(output):
    return {"raw_output": output, "returncode": 0, "timestamp": 1795732570.0, "exception_info": ""}


def _wrong_format(style):
    extra = {"interrupt_type": "FormatError"}
    if style == "text":
        extra |= {"n_actions": 0, "model_response": "I forgot it."}
    message = {"content": "I forgot it.", "role": "assistant", "tool_calls": None, "function_call": None}
    said = "Please always provide EXACTLY ONE action" if style == "text" else "No tool calls found in the response."
    return {"role": "user", "content": said, "extra": extra | {"cost": 0.0, "response": _response(message)}}
