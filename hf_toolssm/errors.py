"""Every error that this package raises on purpose. Each message says what to change."""


class ToolSSMError(ValueError):
    """Base of all named errors of hf_toolssm, so that one `except` catches them."""


class InvalidProblemError(ToolSSMError):
    """A problem text is not one that the task can state, for example a letter in a number."""


class EmptyProblemError(InvalidProblemError):
    """A problem or a prompt without any token."""


class CorruptRowError(ToolSSMError):
    """A dataset row does not hold a whole, consistent trajectory."""


class UnknownTrajectoryFormatError(ToolSSMError):
    """A file of a trajectory whose format, or version of a format, is not one that is read."""


class DatasetWriteError(ToolSSMError):
    """A dataset could not be written whole. What was finished stays and is reused by the next run."""


class DatasetMismatchError(ToolSSMError):
    """A folder already holds a dataset that was built in another way."""


class TooFewProblemsError(ToolSSMError):
    """A problem set has no problem of the number that was asked for."""


class UnknownTaskError(ToolSSMError):
    """No file in dataset_builders/ defines a task of that name."""


class LabelledTextsError(ToolSSMError):
    """Labelled texts that a task needs are not named, or cannot be read."""


class InvalidMachineError(ToolSSMError):
    """A Turing machine's table that cannot be read or says something impossible; the message names the line."""


class NoRuleError(InvalidProblemError):
    """A Turing machine came to a state and a symbol of which its table says nothing."""


class DidNotHaltError(InvalidProblemError):
    """A Turing machine did not halt within the steps that it was given."""


class InvalidMixtureError(ToolSSMError):
    """A share of a task mixture that cannot be read or never be drawn."""


class UnknownToolError(ToolSSMError):
    """No file in hf_toolssm/tools/ defines a tool of that name, or it does not take those options."""


class UnsafeToolError(ToolSSMError):
    """A config names a tool with side effects, which only the caller can allow."""


class ToolError(ToolSSMError):
    """A call that the tool cannot carry out. It ends its row, or the model reads it, as the tool's `on_error` says."""


class UnknownCallError(ToolError):
    """A call that the tool does not have."""


class UnknownPointerError(ToolError):
    """A call for a pointer that was never created."""


class TooManyPointersError(ToolError):
    """One more pointer than the pointer memory was made for."""


class TapeFullError(ToolError):
    """A tape that would become longer than it may."""


class MalformedCallError(ToolError):
    """A call whose argument has no end, or an end without a call."""


class InvalidArgumentsError(ToolError):
    """A call whose arguments are no JSON object, or not what the tool's schema says; the message is for the model."""


class InvalidSchemaError(ToolSSMError):
    """What a tool says of a call's arguments is no JSON Schema of an object, or of a call that it does not have."""


class UndescribedToolError(ToolSSMError):
    """A Python function without the type hints, or the docstring, that tell a model how to call it."""


class McpError(ToolError):
    """An MCP server that cannot be started or reached, or offers something that cannot be used."""


class SandboxUnavailableError(ToolError):
    """A machine on which no command runs in a sandbox."""


class InvalidCommandError(ToolError):
    """A command that no shell can be given."""


class InvalidWorkdirError(ToolSSMError):
    """Files that a shell cannot have, or that cannot be taken from it."""


class StoreError(ToolError):
    """A key-value store whose file cannot be opened, read or written, or is another one than it was."""


class UnforkableToolError(ToolSSMError):
    """A row that is to be copied or saved, and has a tool that cannot be."""


class InvalidExpressionError(ToolError):
    """Something that the calculator cannot compute."""


class ToolFaultError(ToolError):
    """A tool that failed, or answered with something that is no observation. It ends the row that called it."""


class ToolTimeoutError(ToolFaultError):
    """A tool that took longer than its time limit."""


class ObservationTooLongError(ToolFaultError):
    """A tool's answer of more cells, or more characters of text, than one observation may have."""


class ChatTemplateError(ToolSSMError):
    """A chat template that cannot say what has to be said, or of which nothing says how it is read."""


class HistoryRewrittenError(ToolSSMError):
    """A chat template that writes what was said before in another way, once more is said."""


class MessageError(ToolSSMError):
    """Something that is no message of a chat, or stands where it cannot."""


class MissingToolTokensError(ToolSSMError):
    """A tokenizer or a model without the tokens that its tools need."""


class CellNotOneTokenError(ToolSSMError):
    """A memory cell that the tokenizer does not write as exactly one known token."""


class UnspellableTextError(ToolSSMError):
    """Text of a user or a tool that a tokenizer writes only with tokens that were added to it."""


class ArchitectureMismatchError(ToolSSMError):
    """A checkpoint of another architecture than Mamba."""


class UnknownArchitectureError(ToolSSMError):
    """No model from scratch has that name or that shape."""


class UnsupportedArchitectureError(ToolSSMError):
    """A model whose memory cannot be carried, copied or fed exactly."""


class PaddingError(ToolSSMError):
    """Padding where it would change the recurrent state: on the right of a prompt, or inside a row."""


class InputMismatchError(ToolSSMError):
    """Tensors whose sizes, types or devices do not fit each other or the model."""


class StateMismatchError(ToolSSMError):
    """A recurrent state that does not fit the model or the batch."""


class SessionRunningError(ToolSSMError):
    """A sink or a sampler that changes, copies or saves the session which is calling it."""


class SessionTornError(ToolSSMError):
    """A session was interrupted in the middle of a step, and is no value any more."""


class RecordingError(ToolSSMError):
    """A recording of a session cannot be written or read, or there is none."""


class SnapshotError(ToolSSMError):
    """A file that holds no saved session, or a session that cannot be saved."""


class UnsupportedGenerationError(ToolSSMError):
    """A decoding option that has no meaning while tools run."""


class TokenizerNeededError(ToolSSMError):
    """Text is to be read or written, but no tokenizer is known."""


class NoCheckpointError(ToolSSMError):
    """A run was to be resumed, but its folder holds no checkpoint that was written to its end."""


class UnsafeTrainingError(ToolSSMError):
    """A training option that would quietly train something else than what was asked."""


class UnfinishedModelError(ToolSSMError):
    """A folder without something that a published model needs."""


class InvalidHubNameError(ToolSSMError):
    """A repository or a branch that cannot have that name."""


class HubAccessError(ToolSSMError):
    """No token, one that is not valid, or one that may not do this. Nothing was published."""


class HubUnavailableError(ToolSSMError):
    """The Hub cannot be reached, or fails again and again. Nothing is visible that was not before; run it again."""


class HubRefusedError(ToolSSMError):
    """The Hub does not take what was sent, for example a card whose metadata it cannot read."""


class PublishConflictError(ToolSSMError):
    """Someone else has changed the repository since its state was read."""


class CertificationError(ToolSSMError):
    """A model cannot be certified, or a certificate is none."""
