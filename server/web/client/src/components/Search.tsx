import { useSignal } from "@preact/signals";
import type { MatrixEvent } from "matrix-js-sdk";
import { day, t, time } from "../i18n";
import { bodyOf, senderName, voiceOf } from "../matrix/messages";
import { problem as sentence } from "../matrix/problem";
import { me } from "../matrix/session";
import { href } from "../route";
import { PageHeader } from "./PageHeader";
import { VoiceMessage } from "./VoiceMessage";

/** Looks for words that were written, or said in voice messages. */
export function Search() {
    const results = useSignal<{ count: number; events: MatrixEvent[] } | null>(null);
    const problem = useSignal("");
    const busy = useSignal(false);

    async function submit(event: SubmitEvent): Promise<void> {
        event.preventDefault();
        const term = String(new FormData(event.currentTarget as HTMLFormElement).get("term") ?? "").trim();
        if (!term) return;
        busy.value = true;
        problem.value = "";
        try {
            const answer = await me().searchRoomEvents({ term });
            results.value = { count: answer.count ?? answer.results.length, events: answer.results.map((r) => r.context.getEvent()) };
        } catch (error) {
            problem.value = sentence(error);
        } finally {
            busy.value = false;
        }
    }

    return (
        <>
            <PageHeader title={t("search.title")} />
            <form class="search-form" role="search" onSubmit={submit}>
                <input name="term" type="search" placeholder={t("search.placeholder")} aria-label={t("search.placeholder")} autofocus />
                <button class="primary" disabled={busy.value}>
                    {t("search.title")}
                </button>
            </form>
            {problem.value && (
                <p class="problem" role="alert">
                    {problem.value}
                </p>
            )}
            <div class="scroll" aria-live="polite">
                {!results.value && !busy.value && <p class="empty">{t("search.help")}</p>}
                {busy.value && <p class="hint centre">{t("people.searching")}</p>}
                {results.value && !busy.value && <p class="hint centre">{results.value.count ? t("search.results", { count: results.value.count }) : t("search.none")}</p>}
                <ul class="cards">
                    {results.value?.events.map((found) => {
                        const voice = voiceOf(found);
                        return (
                            <li key={found.getId()}>
                                <header>
                                    <span class="row-text">
                                        <strong dir="auto">{senderName(found)}</strong>
                                        <a href={href({ page: "room", room: found.getRoomId()!, event: found.getId() })}>
                                            {me().getRoom(found.getRoomId())?.name ?? found.getRoomId()}
                                        </a>
                                    </span>
                                    <time>
                                        {day(found.getTs())} {time(found.getTs())}
                                    </time>
                                </header>
                                {voice ? <VoiceMessage voice={voice} next={() => undefined} /> : <p class="text" dir="auto">{bodyOf(found)}</p>}
                            </li>
                        );
                    })}
                </ul>
            </div>
        </>
    );
}
