import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import {
    CryptoEvent,
    VerificationPhase,
    VerificationRequestEvent,
    VerifierEvent,
    type ShowSasCallbacks,
    type VerificationRequest,
} from "matrix-js-sdk/lib/crypto-api";
import { t } from "../i18n";
import { me } from "../matrix/session";
import { Dialog } from "./Dialog";

/** The confirmation under way; there is one at a time. */
const request = signal<VerificationRequest | null>(null);
const comparing = signal<ShowSasCallbacks | null>(null);
const tick = signal(0);

/** Asks this person's other devices to confirm this one. */
export async function startVerification(): Promise<void> {
    follow(await me().getCrypto()!.requestOwnUserVerification());
}

function follow(incoming: VerificationRequest): void {
    request.value = incoming;
    comparing.value = null;
    const changed = async (): Promise<void> => {
        tick.value++;
        if (incoming.phase === VerificationPhase.Ready && incoming.initiatedByMe) {
            await run(incoming.startVerification("m.sas.v1"));
        } else if (incoming.phase === VerificationPhase.Started && incoming.verifier && !comparing.value) {
            await run(Promise.resolve(incoming.verifier));
        }
    };
    incoming.on(VerificationRequestEvent.Change, () => void changed().catch((error) => console.warn("verification", error)));
}

const running = new WeakSet<object>();

async function run(starting: Promise<import("matrix-js-sdk/lib/crypto-api").Verifier>): Promise<void> {
    const verifier = await starting;
    if (running.has(verifier)) return;
    running.add(verifier);
    verifier.on(VerifierEvent.ShowSas, (sas) => (comparing.value = sas));
    const shown = verifier.getShowSasCallbacks();
    if (shown) comparing.value = shown;
    await verifier.verify();
}

/** Shows what is asked of this person when devices are confirmed. */
export function VerificationRequests() {
    useEffect(() => {
        const matrix = me();
        const incoming = (r: VerificationRequest): void => follow(r);
        matrix.on(CryptoEvent.VerificationRequestReceived, incoming);
        return () => void matrix.off(CryptoEvent.VerificationRequestReceived, incoming);
    }, []);
    if (tick.value < 0) return null; // read, so that a change renders this anew
    const r = request.value;
    if (!r) return null;
    const close = (): void => {
        request.value = null;
        comparing.value = null;
    };
    const ended = r.phase === VerificationPhase.Done || r.phase === VerificationPhase.Cancelled;
    return (
        <Dialog title={t("verify.title")} onClose={() => (ended ? close() : void r.cancel().finally(close))}>
                {ended ? (
                    <p role="status">{r.phase === VerificationPhase.Done ? t("verify.done") : t("verify.failed")}</p>
                ) : comparing.value ? (
                    <>
                        <p>{t("verify.compare")}</p>
                        <ol class="emoji">
                            {comparing.value.sas.emoji?.map(([picture, name]) => (
                                <li>
                                    <span aria-hidden="true">{picture}</span>
                                    {name}
                                </li>
                            ))}
                        </ol>
                        <div class="buttons">
                            <button class="primary" onClick={() => void comparing.value!.confirm()}>
                                {t("verify.match")}
                            </button>
                            <button class="danger" onClick={() => comparing.value!.mismatch()}>
                                {t("verify.noMatch")}
                            </button>
                        </div>
                    </>
                ) : r.phase === VerificationPhase.Requested && !r.initiatedByMe ? (
                    <>
                        <p>{t("verify.request", { name: r.otherUserId })}</p>
                        <button class="primary" onClick={() => void r.accept()}>
                            {t("verify.accept")}
                        </button>
                    </>
                ) : (
                    <p role="status">{t("verify.waiting")}</p>
                )}
                <button class="link" onClick={() => (ended ? close() : void r.cancel().finally(close))}>
                    {ended ? t("app.close") : t("app.cancel")}
                </button>
        </Dialog>
    );
}
