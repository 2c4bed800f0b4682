import { useSignal } from "@preact/signals";
import { Logo } from "../App";
import { language, languages, setLanguage, t } from "../i18n";
import { register, signInWithPassword } from "../matrix/session";

/** Sign in, or create an account with a registration token. */
export function Login() {
    const creating = useSignal(location.hash.startsWith("#register"));
    const busy = useSignal(false);
    const problem = useSignal("");
    const given = new URLSearchParams(location.hash.replace(/^#register\??/, "")).get("registration_token") ?? "";

    async function submit(event: SubmitEvent): Promise<void> {
        event.preventDefault();
        const form = new FormData(event.currentTarget as HTMLFormElement);
        const field = (name: string): string => String(form.get(name) ?? "").trim();
        busy.value = true;
        problem.value = "";
        try {
            if (creating.value) await register(field("user").toLowerCase(), String(form.get("password")), field("token"));
            else await signInWithPassword(field("user"), String(form.get("password")));
        } catch (error: any) {
            const wrong = !creating.value && error.errcode === "M_FORBIDDEN";
            problem.value = wrong ? t("login.wrong") : t("login.failed", { reason: error.data?.error ?? error.message });
        } finally {
            busy.value = false;
        }
    }

    return (
        <main class="login">
            <Logo />
            <h1>{creating.value ? t("register.title") : t("login.title")}</h1>
            <form onSubmit={submit}>
                <label>
                    {t("login.user")}
                    <input name="user" autocomplete="username" autocapitalize="none" spellcheck={false} required />
                </label>
                <label>
                    {t("login.password")}
                    <input name="password" type="password" autocomplete={creating.value ? "new-password" : "current-password"} required />
                </label>
                {creating.value && (
                    <label>
                        {t("register.token")}
                        <input name="token" autocomplete="off" spellcheck={false} defaultValue={given} aria-describedby="token-help" />
                        <small id="token-help">{t("register.tokenHelp")}</small>
                    </label>
                )}
                {problem.value && (
                    <p class="problem" role="alert">
                        {problem.value}
                    </p>
                )}
                <button class="primary" disabled={busy.value}>
                    {creating.value ? t("register.submit") : t("login.submit")}
                </button>
            </form>
            <button class="link" onClick={() => ((creating.value = !creating.value), (problem.value = ""))}>
                {creating.value ? t("login.toLogin") : t("login.toRegister")}
            </button>
            <p class="hint">{t("login.byCode")}</p>
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
