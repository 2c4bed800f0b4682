import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { decodeRecoveryKey } from "matrix-js-sdk/lib/crypto-api";
import { t } from "../i18n";
import { problem } from "../matrix/problem";
import { sensitive } from "../matrix/sensitive";
import { me, revision, useRecoveryKey } from "../matrix/session";
import { CopyButton } from "./CopyButton";
import { startVerification } from "./Verification";

/** The key in what the person typed. */
function recoveryKey(typed: string): Uint8Array<ArrayBuffer> {
    try {
        return decodeRecoveryKey(typed.trim()) as Uint8Array<ArrayBuffer>;
    } catch {
        throw new Error(t("settings.recoveryKeyWrong"));
    }
}

/** Confirmation of this device, and the backup of its keys. */
export function Security() {
    const crypto = me().getCrypto();
    const verified = useSignal<boolean | null>(null);
    const backedUp = useSignal<boolean | null>(null);
    const shown = useSignal("");
    const message = useSignal("");
    const busy = useSignal(false);

    async function look(): Promise<void> {
        if (!crypto) return;
        const status = await crypto.getDeviceVerificationStatus(me().getUserId()!, me().getDeviceId()!);
        verified.value = status?.crossSigningVerified ?? false;
        backedUp.value = await crypto.isSecretStorageReady();
    }
    useEffect(() => void look().catch((error) => console.warn("encryption", error)), [revision.value]);
    if (!crypto) return null;

    async function run(what: () => Promise<void>): Promise<void> {
        busy.value = true;
        message.value = "";
        try {
            await what();
            await look();
        } catch (error) {
            message.value = problem(error);
        } finally {
            busy.value = false;
        }
    }

    const setUp = (): Promise<void> =>
        run(async () => {
            await crypto.bootstrapCrossSigning({
                authUploadDeviceSigningKeys: async (upload) => {
                    const done = await sensitive(t("settings.setupBackup"), async (auth) => {
                        await upload(auth);
                        return true;
                    });
                    if (!done) throw new Error(t("password.givenUp"));
                },
            });
            const key = await crypto.createRecoveryKeyFromPassphrase();
            await crypto.bootstrapSecretStorage({ createSecretStorageKey: async () => key, setupNewSecretStorage: true, setupNewKeyBackup: true });
            shown.value = key.encodedPrivateKey ?? "";
        });

    async function restore(event: SubmitEvent): Promise<void> {
        event.preventDefault();
        const typed = String(new FormData(event.currentTarget as HTMLFormElement).get("key") ?? "");
        await run(async () => {
            const id = await me().secretStorage.getDefaultKeyId();
            if (!id) throw new Error(t("settings.noBackup"));
            useRecoveryKey(id, recoveryKey(typed));
            await crypto!.bootstrapCrossSigning({});
            await crypto!.loadSessionBackupPrivateKeyFromSecretStorage();
            await crypto!.checkKeyBackupAndEnable();
            await crypto!.restoreKeyBackup();
            message.value = t("settings.restored");
        });
    }

    return (
        <section>
            <h2>{t("settings.security")}</h2>
            <p class="hint">{t("settings.backupHelp")}</p>
            {verified.value !== null && <p>{verified.value ? t("settings.verified") : t("settings.unverified")}</p>}
            <div class="buttons">
                {verified.value === false && backedUp.value && <button onClick={() => void run(startVerification)}>{t("settings.verify")}</button>}
                {!backedUp.value && !shown.value && (
                    <button disabled={busy.value} onClick={() => void setUp()}>
                        {t("settings.setupBackup")}
                    </button>
                )}
            </div>
            {shown.value && (
                <div class="recovery">
                    <p>{t("settings.recoveryKey")}</p>
                    <code id="recovery-key">{shown.value}</code>
                    <CopyButton text={shown.value} />
                </div>
            )}
            {verified.value === false && backedUp.value && (
                <form class="inline" onSubmit={restore}>
                    <label>
                        {t("settings.enterRecoveryKey")}
                        <input name="key" autocomplete="off" spellcheck={false} required />
                    </label>
                    <button disabled={busy.value}>{t("settings.restore")}</button>
                </form>
            )}
            {message.value && <p role="status">{message.value}</p>}
        </section>
    );
}
