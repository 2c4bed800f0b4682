import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { Method } from "matrix-js-sdk";
import { t } from "../i18n";
import { problem } from "../matrix/problem";
import { me } from "../matrix/session";
import { CopyButton } from "./CopyButton";
import { QrCode } from "./QrCode";

/** How long an invitation to this server is good. Milliseconds. */
const lasts = 7 * 24 * 3600_000;

/** For administrators: an invitation with which one colleague can create an account here. */
export function Colleagues() {
    const admin = useSignal(false);
    const link = useSignal("");
    const trouble = useSignal("");
    useEffect(() => {
        me()
            .getCapabilities()
            .then((can) => (admin.value = "m.account_moderation" in can), () => undefined);
    }, []);
    if (!admin.value) return null;
    async function invite(): Promise<void> {
        trouble.value = "";
        try {
            const body = { uses_allowed: 1, expiry_time: Date.now() + lasts };
            const made = await me().http.authedRequest<{ token: string }>(Method.Post, "/registration_tokens/new", undefined, body, { prefix: "/_synapse/admin/v1" });
            link.value = `${location.origin}${location.pathname}#register?registration_token=${encodeURIComponent(made.token)}`;
        } catch (error) {
            trouble.value = problem(error);
        }
    }
    return (
        <section>
            <h2>{t("colleagues.title")}</h2>
            <p class="hint">{t("colleagues.help")}</p>
            {link.value ? (
                <figure class="code">
                    <QrCode text={link.value} />
                    <figcaption>{t("colleagues.give")}</figcaption>
                    <code id="registration-link">{link.value}</code>
                    <div class="buttons">
                        <CopyButton text={link.value} />
                        <button onClick={() => void invite()}>{t("colleagues.another")}</button>
                        <button onClick={() => (link.value = "")}>{t("app.close")}</button>
                    </div>
                </figure>
            ) : (
                <button onClick={() => void invite()}>{t("colleagues.make")}</button>
            )}
            {trouble.value && (
                <p class="problem" role="alert">
                    {trouble.value}
                </p>
            )}
        </section>
    );
}
