import { useSignal } from "@preact/signals";
import { useRef } from "preact/hooks";
import type { ISearchResults } from "matrix-js-sdk";
import { day, t, time } from "../i18n";
import { bodyOf, senderName, voiceOf } from "../matrix/messages";
import { problem as sentence } from "../matrix/problem";
import { me } from "../matrix/session";
import { href } from "../route";
import { focused } from "./focused";
import { PageHeader } from "./PageHeader";
import { VoiceMessage } from "./VoiceMessage";

/** Looks for words that were written, or said in voice messages. */
export function Search() {
    const results = useSignal<ISearchResults | null>(null);
    const problem = useSignal("");
    const busy = useSignal(false);
    /** Counts the searches: what an earlier one finds is of no interest any more. */
    const asked = useRef(0);

    async function submit(event: SubmitEvent): Promise<void> {
        event.preventDefault();
        const term = String(new FormData(event.currentTarget as HTMLFormElement).get("term") ?? "").trim();
        if (!term) return;
        results.value = null;
        await run(() => me().searchRoomEvents({ term }));
    }

    async function run(search: () => Promise<ISearchResults>): Promise<void> {
        const mine = ++asked.current;
        busy.value = true;
        problem.value = "";
        try {
            const found = await search();
            if (mine === asked.current) results.value = { ...found }; // the SDK puts more into the same object
        } catch (error) {
            if (mine === asked.current) problem.value = sentence(error);
        } finally {
            if (mine === asked.current) busy.value = false;
        }
    }
    const found = results.value;
    const count = found?.count ?? found?.results.length ?? 0;

    return (
        <>
            <PageHeader title={t("search.title")} />
            <form class="search-form" role="search" onSubmit={submit}>
                <input name="term" type="search" placeholder={t("search.placeholder")} aria-label={t("search.placeholder")} ref={focused} />
                <button class="primary">
                    {t("search.title")}
                </button>
            </form>
            {problem.value && (
                <p class="problem" role="alert">
                    {problem.value}
                </p>
            )}
            <div class="scroll" aria-live="polite">
                {!found && !busy.value && <p class="empty">{t("search.help")}</p>}
                {!found && busy.value && <p class="hint centre">{t("people.searching")}</p>}
                {found && <p class="hint centre">{count ? t("search.results", { count }) : t("search.none")}</p>}
                <ul class="cards">
                    {found?.results.map(({ context }) => {
                        const event = context.getEvent();
                        const voice = voiceOf(event);
                        return (
                            <li key={event.getId()}>
                                <header>
                                    <span class="row-text">
                                        <strong dir="auto">{senderName(event)}</strong>
                                        <a href={href({ page: "room", room: event.getRoomId()!, event: event.getId() })}>
                                            {me().getRoom(event.getRoomId())?.name ?? event.getRoomId()}
                                        </a>
                                    </span>
                                    <time>
                                        {day(event.getTs())} {time(event.getTs())}
                                    </time>
                                </header>
                                {voice ? <VoiceMessage voice={voice} next={() => undefined} /> : <p class="text" dir="auto">{bodyOf(event)}</p>}
                            </li>
                        );
                    })}
                </ul>
                {found?.next_batch && (
                    <button class="link centre" disabled={busy.value} onClick={() => void run(() => me().backPaginateRoomEventsSearch(found))}>
                        {busy.value ? t("app.loading") : t("app.more")}
                    </button>
                )}
            </div>
        </>
    );
}
