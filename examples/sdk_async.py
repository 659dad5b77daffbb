"""The same names with `await`: several questions at once from one event loop, as in a FastAPI application."""

import asyncio

import lmq


async def main() -> None:
    async with lmq.AsyncClient() as q:
        questions = ["Why is the sky blue?", "Why is the sea salt?", "Why do cats purr?"]
        answers = await asyncio.gather(*(q.chat(question).result() for question in questions))
        for question, answer in zip(questions, answers, strict=True):
            print(f"{question}\n    {answer.text}\n")


asyncio.run(main())
