import SwiftUI

/// Time the programs of the folder probe among the app's documents, and write probe.json beside it.
struct ProbeScreen: View {
  @StateObject private var probe = ProbeModel()

  var body: some View {
    VStack(spacing: 24) {
      Button("Run the probe") { probe.run() }
        .buttonStyle(.borderedProminent)
        .disabled(probe.isBusy)
      Text(probe.told).font(.body.monospacedDigit()).accessibilityIdentifier("probe")
    }
    .padding()
  }
}
