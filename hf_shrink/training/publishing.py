"""A Trainer that publishes by ``hf_shrink.push``: the stock upload takes all that is in the folder, a token too."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy

from hf_shrink.errors import RecipeError
from hf_shrink.publishing.hub import owned
from hf_shrink.publishing.push import Pushed, push
from hf_shrink.publishing.selection import CARD
from hf_shrink.publishing.target import Target, preflight

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_STOCK_CARD = "<!-- This model card has been generated automatically"


class PublishingTrainer(Trainer):
    """Asks for rights before training, and publishes model, tokenizer and card in one commit after it."""

    hub_model_id: Any

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in ``Trainer``, with every check of ``push``; private unless ``hub_private_repo`` (or ``private``) is False.

        Raises:
            RecipeError: a ``hub_strategy`` that uploads while training, which sends whole folders in many commits.
            ShrinkError: nobody is logged in, or the token may not write there.
        """
        if self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END:
            name = HubStrategy(self.args.hub_strategy).value
            raise RecipeError(
                f"hub_strategy {name!r}: not supported: each upload during training would send all of output_dir.\n"
                'Set hub_strategy="end"; checkpoints stay in output_dir.'
            )
        if not self.is_world_process_zero():
            return
        token = token if token is not None else self.args.hub_token
        repo_id = owned(self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name, token)
        self.hub_model_id = repo_id
        self.push_in_progress = None
        preflight(Target(repo_id, public=self._is_public(private)), token=token)

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Pushed | None:
        """Save model, tokenizer and card in ``output_dir`` and publish them: see ``hf_shrink.push``.

        A card that somebody wrote is kept; else the Trainer's is made anew. None in processes other than the first.

        Args:
            commit_message: title of the commit.
            blocking: True; a push that nobody waits for tells nobody that it failed.
            token: None takes ``hub_token``, or the one that is logged in.
            revision: branch; None takes ``hub_revision``.
            private: None takes ``hub_private_repo``; private unless one of them is False.
            kwargs: for ``create_model_card``.

        Raises:
            ShrinkError: as ``hf_shrink.push``.
        """
        if not blocking:
            raise RecipeError("push_to_hub: blocking=False is not supported: nobody would hear of a failure. Leave it out.")
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        folder = Path(str(self.args.output_dir))
        if not (folder / CARD).exists() or _STOCK_CARD in (folder / CARD).read_text(encoding="utf-8", errors="replace"):
            with self._nameless():
                self.create_model_card(**{"model_name": str(self.hub_model_id).split("/")[-1], **kwargs})
        elif kwargs:
            raise RecipeError(f"push_to_hub: {CARD} was written by hand and is kept, so {min(kwargs)} would be ignored.")
        return push(
            folder,
            str(self.hub_model_id),
            public=self._is_public(private),
            revision=revision or self.args.hub_revision,
            message=commit_message,
            token=token,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing goes during training; ``init_hf_repo`` has refused to be asked for it."""

    def _is_public(self, private: bool | None) -> bool:
        return (private if private is not None else self.args.hub_private_repo) is False

    @contextmanager
    def _nameless(self) -> Iterator[None]:
        """The stock card makes a link of whatever the model was loaded from; a path, or nothing, is no name on the Hub."""
        config: Any = getattr(self.model, "config", None)
        name = getattr(config, "_name_or_path", None)
        if name is None or _HUB_NAME.fullmatch(name):
            yield
            return
        config._name_or_path = self.args.output_dir  # a folder that is there is left out of the card
        try:
            yield
        finally:
            config._name_or_path = name
