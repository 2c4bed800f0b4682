import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { language, languages, setLanguage, t } from "../i18n";
import { leaveForCompany, register, signInWithPassword, waysIn, type Credentials, type WaysIn } from "../matrix/account";
import { problem } from "../matrix/problem";
import { Logo } from "./Logo";

interface Props {
    /** What went wrong before this page was shown. */
    problem: string;
    onSignedIn(credentials: Credentials): Promise<void>;
}

/** Sign in, or create an account with a registration token. */
export function Login({ problem: earlier, onSignedIn }: Props) {
    const creating = useSignal(location.hash.startsWith("#register"));
    const busy = useSignal(false);
    const trouble = useSignal(earlier);
    // Until the server has said otherwise there is a password, so that nobody has to wait for the fields.
    const ways = useSignal<WaysIn>({ password: true, companies: [] });
    useEffect(() => void waysIn().then((found) => (ways.value = found), (error) => console.warn("ways to sign in", error)), []);
    const { password: byPassword, companies } = ways.value;
    const form = useRef<HTMLFormElement>(null);
    // The attribute autofocus does that only once in the life of a page, and a frame later.
    useLayoutEffect(() => form.current?.querySelector("input")?.focus(), [creating.value]);
    const given = new URLSearchParams(location.hash.replace(/^#register\??/, "")).get("registration_token") ?? "";

    async function submit(event: SubmitEvent): Promise<void> {
        event.preventDefault();
        const form = new FormData(event.currentTarget as HTMLFormElement);
        const field = (name: string): string => String(form.get(name) ?? "").trim();
        const password = String(form.get("password"));
        busy.value = true;
        trouble.value = "";
        try {
            const credentials = creating.value
                ? await register(field("user").toLowerCase(), field("name"), password, field("token"))
                : await signInWithPassword(field("user"), password);
            if (creating.value) history.replaceState(null, "", location.pathname); // the token is used up
            await onSignedIn(credentials);
        } catch (error: any) {
            const wrong = !creating.value && error.errcode === "M_FORBIDDEN";
            const token = creating.value && error.httpStatus === 401;
            trouble.value = wrong ? t("login.wrong") : token ? t("register.tokenWrong") : problem(error);
        } finally {
            busy.value = false;
        }
    }

    return (
        <main class="login">
            <Logo />
            <h1>{creating.value ? t("register.title") : t("login.title")}</h1>
            {creating.value && <p class="hint">{t("register.welcome", { server: location.host })}</p>}
            {(byPassword || creating.value) && (
                <form ref={form} onSubmit={submit}>
                    {creating.value && (
                        <label>
                            {t("register.name")}
                            <input name="name" autocomplete="name" maxLength={100} />
                        </label>
                    )}
                    <label>
                        {t("login.user")}
                        <input
                            name="user"
                            autocomplete="username"
                            autocapitalize="none"
                            spellcheck={false}
                            required
                            aria-describedby={creating.value ? "user-help" : undefined}
                        />
                        {creating.value && <small id="user-help">{t("register.userHelp")}</small>}
                    </label>
                    <label>
                        {t("login.password")}
                        <input
                            name="password"
                            type="password"
                            autocomplete={creating.value ? "new-password" : "current-password"}
                            minLength={creating.value ? 8 : undefined}
                            required
                            aria-describedby={creating.value ? "password-help" : undefined}
                        />
                        {creating.value && <small id="password-help">{t("register.passwordHelp")}</small>}
                    </label>
                    {creating.value && (
                        <label>
                            {t("register.token")}
                            <input name="token" autocomplete="off" spellcheck={false} defaultValue={given} aria-describedby="token-help" />
                            <small id="token-help">{given ? t("register.tokenGiven") : t("register.tokenHelp")}</small>
                        </label>
                    )}
                    {trouble.value && (
                        <p class="problem" role="alert">
                            {trouble.value}
                        </p>
                    )}
                    <button class="primary" disabled={busy.value}>
                        {busy.value ? t("login.busy") : creating.value ? t("register.submit") : t("login.submit")}
                    </button>
                </form>
            )}
            {!byPassword && !creating.value && trouble.value && (
                <p class="problem" role="alert">
                    {trouble.value}
                </p>
            )}
            {!creating.value && companies.length > 0 && (
                <div class="companies">
                    {companies.map(({ name, href }) => (
                        <a class={byPassword ? "button" : "button primary"} href={href} onClick={leaveForCompany}>
                            {name ? t("login.companyNamed", { name }) : t("login.company")}
                        </a>
                    ))}
                </div>
            )}
            {(byPassword || creating.value) && (
                <button class="link" onClick={() => ((creating.value = !creating.value), (trouble.value = ""))}>
                    {creating.value ? t("login.toLogin") : t("login.toRegister")}
                </button>
            )}
            {!creating.value && <p class="hint">{t("login.byCode")}</p>}
            <nav class="languages" aria-label={t("settings.language")}>
                {Object.entries(languages).map(([code, texts]) => (
                    <button class="link" lang={code} aria-pressed={language.value === code} onClick={() => setLanguage(code)}>
                        {texts.language}
                    </button>
                ))}
            </nav>
        </main>
    );
}
