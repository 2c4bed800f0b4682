import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { t } from "../i18n";
import { problem } from "../matrix/problem";
import { sensitive } from "../matrix/sensitive";
import { me } from "../matrix/session";

/** Changes the password, if there is one: who signs in with a company account has none here. */
export function Password() {
    const said = useSignal("");
    const busy = useSignal(false);
    const possible = useSignal(false);
    useEffect(() => {
        const found = (capabilities: any): void => void (possible.value = capabilities["m.change_password"]?.enabled !== false);
        void me().getCapabilities().then(found, () => found({}));
    }, []);
    async function submit(event: SubmitEvent): Promise<void> {
        event.preventDefault();
        const form = event.currentTarget as HTMLFormElement;
        const password = String(new FormData(form).get("new-password"));
        busy.value = true;
        said.value = "";
        try {
            const done = await sensitive(t("settings.changePassword"), async (auth) => {
                await me().setPassword(auth as any, password, false);
                return true;
            });
            if (!done) return;
            form.reset();
            said.value = t("settings.passwordChanged");
        } catch (error) {
            said.value = problem(error);
        } finally {
            busy.value = false;
        }
    }
    if (!possible.value) return null;
    return (
        <section>
            <h2>{t("settings.changePassword")}</h2>
            <form class="inline" onSubmit={submit}>
                <input type="text" name="username" autocomplete="username" value={me().getUserId()!} hidden readOnly />
                <label>
                    {t("settings.newPassword")}
                    <input name="new-password" type="password" autocomplete="new-password" minLength={8} required />
                </label>
                <button disabled={busy.value}>{t("app.save")}</button>
            </form>
            <p role="status">{said.value}</p>
        </section>
    );
}
