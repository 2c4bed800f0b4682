import { signal, useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { t } from "../i18n";
import { Dialog } from "./Dialog";

interface Question {
    title: string;
    text: string;
    /** What the button says that goes on. */
    yes: string;
    danger?: boolean;
    /** Asks for the password. */
    password?: boolean;
    /** Sends the person to another page, to confirm it there. */
    elsewhere?: string;
    /** What was done before was not right. */
    wrong?: boolean;
    answer(given: string | null): void;
}

const asked = signal<Question | null>(null);

function ask(question: Omit<Question, "answer">): Promise<string | null> {
    asked.value?.answer(null); // one at a time
    return new Promise((resolve) => {
        asked.value = {
            ...question,
            answer: (given) => {
                asked.value = null;
                resolve(given);
            },
        };
    });
}

/** Asks whether to do something that cannot be undone. */
export async function confirmed(question: { title: string; text: string; yes: string; danger?: boolean }): Promise<boolean> {
    return (await ask(question)) !== null;
}

/** Asks for the account's password; null if the person gives up. */
export function askPassword(why: string, wrong: boolean): Promise<string | null> {
    return ask({ title: t("password.title"), text: why, yes: t("password.go"), password: true, wrong });
}

/** Asks to confirm something on another page, and waits until the person has been there; false if they give up. */
export async function confirmElsewhere(why: string, page: string, wrong: boolean): Promise<boolean> {
    return (await ask({ title: t("elsewhere.title"), text: why, yes: t("elsewhere.done"), elsewhere: page, wrong })) !== null;
}

/** Shows what is being asked. There is one of it on the page. */
export function Questions() {
    const question = asked.value;
    const left = useSignal(false);
    useEffect(() => void (left.value = false), [question]);
    // Who comes back from the other page has most likely done it there.
    useEffect(() => {
        if (!question?.elsewhere || !left.value) return;
        const back = (): void => {
            if (document.visibilityState === "visible") question.answer("");
        };
        window.addEventListener("focus", back);
        document.addEventListener("visibilitychange", back);
        return () => {
            window.removeEventListener("focus", back);
            document.removeEventListener("visibilitychange", back);
        };
    }, [question, left.value]);
    if (!question) return null;
    const submit = (event: SubmitEvent): void => {
        event.preventDefault();
        question.answer(String(new FormData(event.currentTarget as HTMLFormElement).get("password") ?? ""));
    };
    return (
        <Dialog title={question.title} onClose={() => question.answer(null)} key={question}>
            <form class="dialog-form" onSubmit={submit}>
                <p>{question.text}</p>
                {question.password && (
                    <label>
                        {t("login.password")}
                        <input name="password" type="password" autocomplete="current-password" required autofocus aria-invalid={question.wrong} />
                    </label>
                )}
                {question.elsewhere && <p class="hint">{t("elsewhere.help")}</p>}
                {question.wrong && (
                    <p class="problem" role="alert">
                        {t(question.elsewhere ? "elsewhere.wrong" : "password.wrong")}
                    </p>
                )}
                <div class="buttons end">
                    <button type="button" onClick={() => question.answer(null)}>
                        {t("app.cancel")}
                    </button>
                    {question.elsewhere && !left.value ? (
                        <a class="button primary" href={question.elsewhere} target="_blank" rel="noopener" onClick={() => (left.value = true)}>
                            {t("elsewhere.go")}
                        </a>
                    ) : (
                        <button class={question.danger ? "primary destructive" : "primary"}>{question.yes}</button>
                    )}
                </div>
            </form>
        </Dialog>
    );
}
