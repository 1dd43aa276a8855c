package org.lightningprune.digitpad

import android.os.Build
import android.os.Bundle
import android.widget.Button
import org.lightningprune.logic.Manifest
import org.lightningprune.logic.Timing

/** Run the program many times on one thread: median and spread, beside what the manifest says of the file. */
class BenchmarkActivity : ModelActivity() {
    private lateinit var button: Button

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        text.textSize = 18f
        button = button("Run $ROUNDS rounds") { measure() }
        show(button, text)
    }

    private fun measure() = start {
        button.isEnabled = false
        try {
            val (manifest, timing) = runner.ask { Pair(it.manifest, it.benchmark(ROUNDS)) }
            text.text = described(manifest, timing)
        } finally {
            button.isEnabled = true
        }
    }

    private fun described(manifest: Manifest, timing: Timing): String = listOf(
        "${manifest.model} on ${manifest.backend}, ${manifest.program.sizeBytes} bytes",
        "${Build.MANUFACTURER} ${Build.MODEL}, 1 thread",
        "median %.3f ms, spread %.3f ms, fastest %.3f ms".format(timing.median, timing.spread, timing.fastest),
        "90 %% of ${timing.runs} runs below %.3f ms".format(timing.quantile(0.9))
    ).joinToString("\n")

    private companion object {
        const val ROUNDS = 100
    }
}
